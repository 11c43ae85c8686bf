//! Ours: a node that serves patients, and one that asks for them over the link between the two.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hygeia::actors::link::{self, Inbox, Links, Served};
use hygeia::actors::patients::Patients;
use hygeia::actors::peers::{self, Peers};
use hygeia::actors::system::{Chain, Runs, Tree};
use hygeia::clock::SystemClock;
use hygeia::domain::cluster::NodeRole;
use tempfile::TempDir;

use crate::ask::ours::{Asked, open, parts};
use crate::node::JWT_SECRET;
use crate::{Result, role};

/// A node as far as a question needs one.
struct Node {
    tree: Tree,
    peers: Peers,
    chain: Chain<Patients>,
    parts: hygeia::actors::system::Parts,
    directory: TempDir,
}

impl Node {
    async fn start(name: &str, node_role: NodeRole, join: Vec<String>) -> Result<Node> {
        let directory = tempfile::tempdir()?;
        let database = open(&directory).await?;
        let chain = Chain::<Patients>::default();
        let runs = Runs { serving: node_role == NodeRole::Patient, asking: node_role == NodeRole::Front };
        let owner: Arc<str> = format!("{name}#1").into();
        let inbox = Inbox::default();
        let settings = peers::Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            secret: Some(JWT_SECRET.to_owned().into()),
            ..peers::Settings::default()
        };
        let peers = Peers::bind(peers::Args {
            name: name.into(),
            owner: Arc::clone(&owner),
            roles: [node_role].into(),
            nodes: Vec::new(),
            join,
            settings,
            clock: Arc::new(SystemClock),
            frame_sink: inbox.sink(),
        })
        .await?;
        let served = Served {
            patients: runs.serving.then(|| chain.region().clone()),
            patient_directory: chain.directory_address().clone(),
            ..Served::default()
        };
        let links = Links::start(peers.members(), Arc::new(SystemClock), &link::Settings::default(), served);
        inbox.open(&links);
        let parts = parts(&database, owner, peers.members(), Some(links)).await?;
        let mut children = vec![peers.child()];
        children.extend(chain.children(&parts, runs, database, Vec::new()));
        let tree = Tree::start(&parts, children).await?;
        Ok(Node { tree, peers, chain, parts, directory })
    }

    async fn stop(self) -> Result<()> {
        self.tree.stopping();
        self.peers.stop().await;
        self.tree.stop().await;
        Ok(self.directory.close()?)
    }
}

/// The process that answers.
pub(super) async fn answer() -> Result<()> {
    let () = role::task()?;
    let node = Node::start("answering", NodeRole::Patient, Vec::new()).await?;
    role::tell(&node.peers.local_addr().to_string())?;
    tokio::task::spawn_blocking(role::until_dismissed).await??;
    node.stop().await
}

/// The process that asks.
pub(super) async fn ask() -> Result<()> {
    let met_at: String = role::task()?;
    let node = Node::start("asking", NodeRole::Front, vec![met_at]).await?;
    let mut members = node.parts.members.clone();
    members.wait_for(|view| view.with_role(NodeRole::Patient).next().is_some()).await?;
    let asked = Asked::registered(node.chain.handle(&node.parts)).await?;
    super::ask_as_told(move || asked.clone().ask()).await?;
    node.stop().await
}
