//! SOCKS5 (RFC 1928): CONNECT to a name in the mesh, without authentication, from the application beside this process.
//!
//! In: a TCP client. Out: its stream in the mesh, or a reply that says why not. Never: dials an address. One in
//! 127.64.0.0/10 is looked up as the service that it stands for; every other is refused, so this is no open proxy.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use federation_model::{Denial, DenialReason, ServiceRef};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Core,
    authorize::Refusal,
    connect,
    stream::{Stream, farewell},
};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Replies (RFC 1928, 6).
mod reply {
    pub(super) const SUCCEEDED: u8 = 0;
    pub(super) const FAILURE: u8 = 1;
    pub(super) const NOT_ALLOWED: u8 = 2;
    pub(super) const HOST_UNREACHABLE: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
    pub(super) const COMMAND: u8 = 7;
    pub(super) const ADDRESS_TYPE: u8 = 8;
}

/// Why a SOCKS5 client was not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocksError {
    #[error("client speaks version {0}, not SOCKS 5")]
    Version(u8),
    #[error("client offers no method that is accepted: only \"no authentication\" is")]
    Method,
    #[error("SOCKS command {0} is not served: only CONNECT is")]
    Command(u8),
    #[error("SOCKS address type {0} is not served: give the service's name")]
    AddressType(u8),
    #[error("SOCKS request is malformed: {0}")]
    Malformed(&'static str),
    #[error("{0:?} is no name in mesh.internal")]
    Name(String),
    #[error("{0} stands for no service here: only addresses that mesh DNS gave out do")]
    Address(IpAddr),
    #[error("client did not say what it wants in time")]
    Timeout,
    #[error("client's stream")]
    Stream(#[from] io::Error),
    #[error(transparent)]
    Denied(#[from] Denial),
}

impl SocksError {
    /// Short fixed word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Version(_) => "socks_version",
            Self::Method => "socks_method",
            Self::Command(_) => "socks_command",
            Self::AddressType(_) => "socks_address_type",
            Self::Malformed(_) => "socks_malformed",
            Self::Name(_) => "socks_name",
            Self::Address(_) => "socks_address",
            Self::Timeout => "socks_timeout",
            Self::Stream(_) => "socks_stream",
            Self::Denied(denial) => denial.reason.as_str(),
        }
    }

    /// What the client is answered; `None` when it is not at the point of a reply.
    fn reply(&self) -> Option<u8> {
        match self {
            Self::Version(_) | Self::Method | Self::Timeout | Self::Stream(_) => None,
            Self::Command(_) => Some(reply::COMMAND),
            Self::AddressType(_) => Some(reply::ADDRESS_TYPE),
            Self::Malformed(_) | Self::Denied(_) => Some(reply::FAILURE),
            Self::Name(_) | Self::Address(_) => Some(reply::HOST_UNREACHABLE),
        }
    }
}

pub(crate) async fn serve(
    core: &Arc<Core>,
    mut client: TcpStream,
    lookup: impl Fn(Ipv4Addr) -> Option<ServiceRef> + Send,
) -> Result<(), SocksError> {
    // Small messages of an application are not held back; fails only on a socket that is gone already.
    let _ = client.set_nodelay(true);
    let asked = timeout(core.inputs.limits.hello_timeout, ask(&mut client, lookup)).await;
    let (service, port) = match asked.unwrap_or(Err(SocksError::Timeout)) {
        Ok(wanted) => wanted,
        Err(error) => {
            if let Some(code) = error.reply() {
                farewell(client, &reply_bytes(code)).await;
            }
            return Err(error);
        }
    };
    let opened = match connect::open(core, &service, port).await {
        Ok(opened) => opened,
        Err(refusal) => {
            farewell(client, &reply_bytes(code(&refusal))).await;
            return Err(refusal.denial.into());
        }
    };
    // TLS is up: whoever answers is one of the service's own. A denial by the destination resets the stream.
    let told = reply_bytes(reply::SUCCEEDED);
    if !matches!(timeout(core.inputs.limits.hello_timeout, client.write_all(&told)).await, Ok(Ok(()))) {
        client.reset();
    }
    Ok(connect::carry(core, client, opened).await?)
}

/// The whole dialogue up to the request. Reads not one byte more than it has.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    lookup: impl Fn(Ipv4Addr) -> Option<ServiceRef>,
) -> Result<(ServiceRef, u16), SocksError> {
    let version = client.read_u8().await?;
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    let mut methods = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        client.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Err(SocksError::Method);
    }
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;

    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let [version, command, reserved, kind] = request;
    if version != VERSION || reserved != 0 {
        return Err(SocksError::Malformed("version is not 5, or the reserved byte not 0"));
    }
    // The address is read before the command is judged, so that the reply does not meet unread bytes.
    let host = match kind {
        1 => {
            let mut address = [0; 4];
            client.read_exact(&mut address).await?;
            Ok(IpAddr::from(address))
        }
        3 => {
            let mut name = vec![0; usize::from(client.read_u8().await?)];
            client.read_exact(&mut name).await?;
            Err(name)
        }
        4 => {
            let mut address = [0; 16];
            client.read_exact(&mut address).await?;
            Ok(IpAddr::from(address))
        }
        other => return Err(SocksError::AddressType(other)),
    };
    let port = client.read_u16().await?;
    if command != CONNECT {
        return Err(SocksError::Command(command));
    }
    let service = match host {
        Ok(address) => by_address(address, lookup)?,
        Err(name) => {
            let name = str::from_utf8(&name).map_err(|_| SocksError::Malformed("the name is not text"))?;
            match name.parse() {
                // Some clients put an address where a name belongs.
                Ok(address) => by_address(address, lookup)?,
                Err(_) => ServiceRef::from_dns(name).map_err(|_| SocksError::Name(name.to_owned()))?,
            }
        }
    };
    if port == 0 {
        return Err(SocksError::Malformed("port is 0"));
    }
    Ok((service, port))
}

fn by_address(address: IpAddr, lookup: impl Fn(Ipv4Addr) -> Option<ServiceRef>) -> Result<ServiceRef, SocksError> {
    match address {
        IpAddr::V6(_) => Err(SocksError::AddressType(4)),
        IpAddr::V4(four) if four.octets()[0] == 127 && four.octets()[1] & 0xc0 == 64 => {
            lookup(four).ok_or(SocksError::Address(address))
        }
        IpAddr::V4(_) => Err(SocksError::Address(address)),
    }
}

fn code(refusal: &Refusal) -> u8 {
    match refusal.denial.reason {
        DenialReason::DefaultDeny
        | DenialReason::Rule
        | DenialReason::Guardrail
        | DenialReason::UnknownSource
        | DenialReason::WrongProof
        | DenialReason::Expired
        | DenialReason::Revoked
        | DenialReason::NoSnapshot
        | DenialReason::Stale => reply::NOT_ALLOWED,
        DenialReason::UnknownService if refusal.word == "wrong_port" => reply::REFUSED,
        DenialReason::UnknownService | DenialReason::Unreachable => reply::HOST_UNREACHABLE,
        DenialReason::NoInstance => reply::REFUSED,
        _ => reply::FAILURE,
    }
}

/// A reply; the bound address says nothing here, so it is zero.
fn reply_bytes(code: u8) -> [u8; 10] {
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}
