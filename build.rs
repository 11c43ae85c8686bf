//! Generates the protobuf code, with the protoc that a crate ships: none needs to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 2] = ["proto/billing_service.proto", "proto/patient_event.proto"];
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    let descriptors = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        .include_file("protos.rs")
        .compile_with_config(config, &PROTOS, &["proto"])?;
    Ok(())
}
