//! Generates the protobuf code with a vendored `protoc`, so that none needs to be installed. Compresses the
//! files of the Swagger UI page at build time, so that no request has to.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 2] = ["proto/billing_service.proto", "proto/patient_event.proto"];
    const BETWEEN_NODES: [&str; 3] = [
        "proto/hygeia/cluster/v1/link.proto",
        "proto/hygeia/cluster/v1/peer.proto",
        "proto/hygeia/audit/v1/audit.proto",
    ];
    // Messages without `Debug`, because it would print patients' data.
    const CARRIES_PATIENTS: [&str; 48] = [
        ".hygeia.cluster.v1.Frame",
        ".hygeia.cluster.v1.Id",
        ".hygeia.cluster.v1.Trace",
        ".hygeia.cluster.v1.Envelope",
        ".hygeia.cluster.v1.Request",
        ".hygeia.cluster.v1.PatientRead",
        ".hygeia.cluster.v1.Details",
        ".hygeia.cluster.v1.RegisterPatient",
        ".hygeia.cluster.v1.UpdatePatient",
        ".hygeia.cluster.v1.DeletePatient",
        ".hygeia.cluster.v1.RestrictPatient",
        ".hygeia.cluster.v1.ChangePatient",
        ".hygeia.cluster.v1.Versions",
        ".hygeia.cluster.v1.PatchPatient",
        ".hygeia.cluster.v1.ListPatients",
        ".hygeia.cluster.v1.ListPosition",
        ".hygeia.cluster.v1.SearchPatients",
        ".hygeia.cluster.v1.Born",
        ".hygeia.cluster.v1.Place",
        ".hygeia.cluster.v1.PatientHistory",
        ".hygeia.cluster.v1.History",
        ".hygeia.cluster.v1.HistoryEntry",
        ".hygeia.cluster.v1.ReadAccount",
        ".hygeia.cluster.v1.OpenAccount",
        ".hygeia.cluster.v1.AnalyticsSummary",
        ".hygeia.cluster.v1.Status",
        ".hygeia.cluster.v1.Reply",
        ".hygeia.cluster.v1.Patient",
        ".hygeia.cluster.v1.Patients",
        ".hygeia.cluster.v1.Account",
        ".hygeia.cluster.v1.Summary",
        ".hygeia.cluster.v1.TypeCount",
        ".hygeia.cluster.v1.DayCount",
        ".hygeia.cluster.v1.BandCount",
        ".hygeia.cluster.v1.StatusReport",
        ".hygeia.cluster.v1.Refusal",
        ".hygeia.cluster.v1.Failure",
        ".hygeia.cluster.v1.Hint",
        ".hygeia.cluster.v1.Nudge",
        ".hygeia.cluster.v1.ShardsReleased",
        ".hygeia.audit.v1.Batch",
        ".hygeia.audit.v1.Opening",
        ".hygeia.audit.v1.Pin",
        ".hygeia.audit.v1.Who",
        ".hygeia.audit.v1.Entry",
        ".hygeia.audit.v1.ArchiveItem",
        ".hygeia.audit.v1.ArchiveRow",
        ".hygeia.cluster.v1.SessionsRevoked",
    ];
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=src/http/docs/swagger-initializer.js");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    swagger_ui(&out)?;
    let protoc = protoc_bin_vendored::protoc_bin_path()?;
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(&protoc);
    let descriptors = out.join("descriptors.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        .include_file("protos.rs")
        .compile_with_config(config, &PROTOS, &["proto"])?;
    // Compiled separately, because the messages between nodes must not appear in the descriptors that
    // reflection publishes.
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(protoc).skip_debug(CARRIES_PATIENTS);
    tonic_prost_build::configure().compile_with_config(config, &BETWEEN_NODES, &["proto"])?;
    Ok(())
}

/// Writes the files of the Swagger UI page, plain and with maximum compression, and the table
/// `swagger_ui.rs`. A row of the table has the name, the media type, and the content plain, in brotli and in
/// gzip. The initializer script is ours, because the library's does not support tokens.
fn swagger_ui(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const OURS: &str = "swagger-initializer.js";
    const FILES: [(&str, &str); 7] = [
        ("index.html", "text/html; charset=utf-8"),
        ("index.css", "text/css"),
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("swagger-ui-standalone-preset.js", "text/javascript"),
        ("favicon-16x16.png", "image/png"),
        ("favicon-32x32.png", "image/png"),
    ];
    let mut library = zip::ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED))?;
    let mut rows = vec![row(out, OURS, "text/javascript", fs::read(format!("src/http/docs/{OURS}"))?)?];
    for index in 0..library.len() {
        let mut file = library.by_index(index)?;
        let Some(path) = file.enclosed_name() else { continue };
        // Paths begin with a directory that is named after the version.
        let within = path.components().skip(1).collect::<std::path::PathBuf>();
        let wanted = FILES.iter().find(|(name, _)| within == Path::new("dist").join(name));
        if let Some((name, media_type)) = wanted {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            rows.push(row(out, name, media_type, bytes)?);
        }
    }
    if rows.len() != FILES.len() + 1 {
        return Err("Swagger UI lacks a file that its page needs".into());
    }
    fs::write(out.join("swagger_ui.rs"), format!("[{}]", rows.join(",\n")))?;
    Ok(())
}

/// Writes a file in its encodings. Returns its row of the table.
fn row(out: &Path, name: &str, media_type: &str, bytes: Vec<u8>) -> std::io::Result<String> {
    let mut brotli = Vec::new();
    brotli::BrotliCompress(&mut &*bytes, &mut brotli, &brotli::enc::BrotliEncoderParams::default())?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&bytes)?;
    let mut files = Vec::new();
    for (ending, bytes) in [("plain", bytes), ("br", brotli), ("gz", gzip.finish()?)] {
        let file = out.join(format!("{name}.{ending}"));
        fs::write(&file, bytes)?;
        files.push(format!("include_bytes!({file:?})"));
    }
    Ok(format!("({name:?}, {media_type:?}, {})", files.join(", ")))
}
