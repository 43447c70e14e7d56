//! nginx, as an endpoint that speaks TLS. The test has `support/tls.rs` as its module `tls`.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::tls::Pair;

/// nginx on a port of its own, which it inherits as if it replaced another one; stopped when dropped.
pub struct Nginx {
    pub address: SocketAddr,
    child: Child,
}

impl Nginx {
    /// `listen` are options of the listening socket, `server` more directives.
    pub fn start(folder: &Path, pair: &Pair, listen: &str, server: &str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        let folder = folder.join(format!("nginx-{}", address.port()));
        fs::create_dir(&folder).expect("a folder");
        let config = format!(
            "daemon off; pid {folder}/pid; error_log stderr warn; worker_processes 1; events {{ }}
             http {{
                 access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2;
                 fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
                 server {{
                     listen {address} ssl {listen}; ssl_certificate {}; ssl_certificate_key {};
                     ssl_session_cache shared:all:1m; {server}
                     add_header x-protocol $server_protocol always; add_header x-name \"$ssl_server_name\" always;
                     add_header x-client \"$ssl_client_s_dn\" always; add_header x-reused $ssl_session_reused always;
                     location / {{ return 200 ok; }}
                 }}
             }}",
            pair.certificate.display(),
            pair.key.display(),
            folder = folder.display(),
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config).expect("written");
        let mut command = Command::new("nginx");
        command.env("NGINX", "0;").arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c").arg(&file);
        command.stdin(OwnedFd::from(socket)).stdout(Stdio::null());
        Self { address, child: command.spawn().expect("nginx") }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its worker along when it is told to stop.
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
