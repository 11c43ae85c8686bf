//! A collector of spans: it takes OTLP over gRPC and keeps everything.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What was sent, request by request.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

/// A span with the node that made it.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) node: String,
    pub(crate) span: Span,
}

impl Made {
    /// An id as log lines have it.
    pub(crate) fn hex(id: &[u8]) -> String {
        id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.requests.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens from now on; at the address that it answers with.
    pub(crate) async fn start() -> (Self, String) {
        let collector = Collector::default();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).expect("a port");
        let endpoint = format!("http://{}", incoming.local_addr().expect("an address"));
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        (collector, endpoint)
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Made> {
        let requests = self.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let mut all = Vec::new();
        for resource in resources {
            let attributes = resource.resource.iter().flat_map(|resource| &resource.attributes);
            let node = attributes.filter(|attribute| attribute.key == "service.instance.id").find_map(|a| {
                match a.value.as_ref()?.value.as_ref()? {
                    Value::StringValue(text) => Some(text.clone()),
                    _ => None,
                }
            });
            let node = node.expect("a resource names its node");
            let spans = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
            all.extend(spans.map(|span| Made { node: node.clone(), span: span.clone() }));
        }
        all
    }

    /// Everything that was sent, as text.
    pub(crate) fn dump(&self) -> String {
        format!("{:#?}", self.requests.lock().unwrap())
    }
}
