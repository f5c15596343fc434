//! Compiles the `.proto` files with a compiler written in Rust, so that nobody needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["record", "federation", "token", "workload", "manage", "store"].map(|name| format!("hanse/{name}.proto"));
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure()
        // The one shape of `-o json`: only what an operator reads derives Serialize.
        .type_attribute(".hanse.manage.v1", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=hanse");
    Ok(())
}
