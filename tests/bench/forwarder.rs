//! A unix socket that leads to dockerd's BuildKit: `POST /grpc` with an upgrade, then bytes both ways. It lets buildx's
//! remote driver use the very engine that Kiln uses.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use anyhow::{Context as _, ensure};

/// Listens until the process ends.
pub fn listen(socket: &Path, docker: &Path) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("{}", socket.display()))?;
    let docker = docker.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            match upgrade(&docker) {
                Ok(engine) => join(client, engine),
                Err(error) => eprintln!("forwarder: {error:#}"),
            }
        }
    });
    Ok(())
}

fn upgrade(docker: &Path) -> anyhow::Result<UnixStream> {
    let mut engine = UnixStream::connect(docker)?;
    engine.write_all(
        b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
    )?;
    let mut head = Vec::new();
    let mut byte = [0_u8];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 8192, "the engine's answer has no end");
        engine.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    Ok(engine)
}

fn join(client: UnixStream, engine: UnixStream) {
    let pairs = client.try_clone().and_then(|client| Ok((client, engine.try_clone()?)));
    let Ok((client_again, engine_again)) = pairs else { return };
    copy(client, engine);
    copy(engine_again, client_again);
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
