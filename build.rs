//! Generates the protobuf code, with the protoc that a crate ships: none needs to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 2] = ["proto/billing_service.proto", "proto/patient_event.proto"];
    const BETWEEN_NODES: [&str; 3] = [
        "proto/hygeia/cluster/v1/link.proto",
        "proto/hygeia/cluster/v1/peer.proto",
        "proto/hygeia/audit/v1/audit.proto",
    ];
    // `Debug` would print the patients.
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
    let protoc = protoc_bin_vendored::protoc_bin_path()?;
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(&protoc);
    let descriptors = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        .include_file("protos.rs")
        .compile_with_config(config, &PROTOS, &["proto"])?;
    // Apart, since it is nobody else's to see: not in the descriptors that reflection shows.
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(protoc).skip_debug(CARRIES_PATIENTS);
    tonic_prost_build::configure().compile_with_config(config, &BETWEEN_NODES, &["proto"])?;
    Ok(())
}
