//! From the bytes of a query to the bytes of its answer.
//!
//! In: one message from anybody. Out: one message, or nothing. Never: reads past the header before the header's counts
//! are within bounds; never sends more than twice what was asked over UDP, so that a forged sender gains nothing.

use federation_model::{Ages, Snapshot};
use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record as WireRecord, rdata, rdata::opt::EdnsOption},
    serialize::binary::{BinDecodable, BinDecoder},
};

use crate::{
    Addresses,
    answer::{Answer, Data, NEGATIVE_TTL, QueryType, Rcode, Record, SOA_TIMERS, Why, answer_from},
};

/// Longest answer over UDP in bytes, and what our EDNS names: it fits an IPv6 packet on any path (RFC 9715, 3).
pub const UDP_BYTES_MAX: usize = 1232;
/// Longest answer over UDP for a client that sends no EDNS (RFC 1035, 4.2.1).
const UDP_BYTES_PLAIN: usize = 512;
/// Longest query that is read, over either transport: a name, EDNS and room for its options.
pub const REQUEST_BYTES_MAX: usize = 4096;
/// Most additional records of a query: EDNS and a signature.
const ADDITIONALS_MAX: u16 = 2;

/// Number of the option for extended errors (RFC 8914, 2).
const EDE: u16 = 15;
/// The answer is older than its source allows, and the source cannot be reached (RFC 8914, 4.4).
const EDE_STALE: u16 = 3;
/// No source of the answer can be reached (RFC 8914, 4.23).
const EDE_UNREACHABLE: u16 = 22;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// What to do about a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Say nothing. Holds a short fixed word.
    Drop(&'static str),
    Send {
        bytes: Vec<u8>,
        rcode: Rcode,
        truncated: bool,
    },
}

/// Answers `request`. Pure but for the lock in `addresses`.
pub(crate) fn respond(
    snapshot: Option<&Snapshot>,
    addresses: &Addresses,
    ages: &Ages,
    request: &[u8],
    transport: Transport,
) -> Reply {
    let Ok(header) = Header::read(&mut BinDecoder::new(request)) else { return Reply::Drop("short") };
    // Two servers that answer each other's answers would never stop.
    if header.message_type == MessageType::Response {
        return Reply::Drop("response");
    }
    if header.op_code != OpCode::Query {
        return bare(&header.metadata, Rcode::NotImp);
    }
    let counts = header.counts;
    let unasked = counts.answers != 0 || counts.authorities != 0 || counts.additionals > ADDITIONALS_MAX;
    // More than one question has no defined meaning (RFC 9619, 4).
    if counts.queries != 1 || unasked || request.len() > REQUEST_BYTES_MAX {
        return bare(&header.metadata, Rcode::FormErr);
    }
    let Ok(message) = Message::from_vec(request) else { return bare(&header.metadata, Rcode::FormErr) };
    let Some(query) = message.queries.first() else { return bare(&header.metadata, Rcode::FormErr) };

    let answer = match &message.edns {
        Some(edns) if edns.version() != 0 => None,
        _ if query.query_class() != DNSClass::IN => Some(Answer::bare(Rcode::Refused, Why::Class)),
        _ => Some(answer_from(snapshot, addresses, ages, &text(query.name()), QueryType(query.query_type().into()))),
    };
    let rcode = answer.as_ref().map_or(Rcode::BadVers, |answer| answer.rcode);
    let reply = assemble(&header.metadata, query, message.edns.as_ref(), rcode, answer);
    let limit = match (transport, &message.edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => UDP_BYTES_PLAIN.min(2 * request.len()),
        // A size below 512 means 512 (RFC 6891, 6.2.3).
        (Transport::Udp, Some(edns)) => {
            usize::from(edns.max_payload()).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX).min(2 * request.len())
        }
    };
    match reply.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Reply::Send { bytes, rcode, truncated: false },
        Ok(_) => match reply.truncate().to_vec() {
            Ok(bytes) => Reply::Send { bytes, rcode, truncated: true },
            Err(_) => bare(&header.metadata, Rcode::ServFail),
        },
        Err(error) => {
            tracing::debug!(%error, "answer could not be encoded");
            bare(&header.metadata, Rcode::ServFail)
        }
    }
}

fn assemble(asked: &Metadata, query: &Query, edns: Option<&Edns>, rcode: Rcode, answer: Option<Answer>) -> Message {
    let mut reply = Message::response(asked.id, OpCode::Query);
    reply.metadata = Metadata::response_from_request(asked);
    reply.metadata.response_code = code(rcode);
    reply.metadata.authoritative = matches!(rcode, Rcode::NoError | Rcode::NxDomain);
    reply.add_query(query.clone());
    if let Some(answer) = &answer {
        reply.add_answers(answer.records.iter().map(|record| wire_record(record, query.name())));
        reply.add_authorities(answer.authority.iter().map(|record| wire_record(record, query.name())));
    }
    if let Some(edns) = edns {
        let mut ours = Edns::new();
        ours.set_version(0).set_max_payload(UDP_BYTES_MAX as u16);
        // Copied, as RFC 3225, 3 asks, though nothing here is signed.
        ours.set_dnssec_ok(edns.flags().dnssec_ok);
        if let Some(info) = answer.as_ref().and_then(extended) {
            ours.options_mut().insert(EdnsOption::Unknown(EDE, info.to_be_bytes().to_vec()));
        }
        reply.set_edns(ours);
    }
    reply
}

/// The code that says more than the response code does (RFC 8914, 5.2), about data past its lease.
fn extended(answer: &Answer) -> Option<u16> {
    match (&answer.why, &answer.data) {
        (Why::Stale(..), _) => Some(EDE_UNREACHABLE),
        (_, Some(data)) if data.is_over() => Some(EDE_STALE),
        _ => None,
    }
}

/// Only a header: what the question was could not be read, or does not matter.
fn bare(asked: &Metadata, rcode: Rcode) -> Reply {
    let mut reply = Message::response(asked.id, asked.op_code);
    reply.metadata = Metadata::response_from_request(asked);
    reply.metadata.response_code = code(rcode);
    match reply.to_vec() {
        Ok(bytes) => Reply::Send { bytes, rcode, truncated: false },
        Err(_) => Reply::Drop("unencodable"),
    }
}

/// Owners are taken from the question, so that they keep its case and compress to a pointer into it.
fn wire_record(record: &Record, asked: &Name) -> WireRecord {
    let zone = || asked.trim_to(2);
    let ttl = u32::try_from(record.ttl.as_secs()).unwrap_or(u32::MAX);
    match &record.data {
        Data::A(address) => WireRecord::from_rdata(asked.clone(), ttl, RData::A(rdata::A(*address))),
        Data::Ns => WireRecord::from_rdata(zone(), ttl, RData::NS(rdata::NS(zone()))),
        Data::Soa { serial } => {
            let [refresh, retry, expire] = SOA_TIMERS;
            let minimum = NEGATIVE_TTL.as_secs() as u32;
            // The mailbox is the root: there is nobody to write to, and it costs one byte.
            let soa = rdata::SOA::new(zone(), Name::root(), *serial, refresh, retry, expire, minimum);
            WireRecord::from_rdata(zone(), ttl, RData::SOA(soa))
        }
    }
}

/// The name as text. Bytes that are in no host name are escaped (RFC 4343, 2.1), a dot within a label among them, so
/// that no label can pose as two.
fn text(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        for byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(*byte)),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
        text.push('.');
    }
    text
}

fn code(rcode: Rcode) -> ResponseCode {
    match rcode {
        Rcode::NoError => ResponseCode::NoError,
        Rcode::FormErr => ResponseCode::FormErr,
        Rcode::ServFail => ResponseCode::ServFail,
        Rcode::NxDomain => ResponseCode::NXDomain,
        Rcode::NotImp => ResponseCode::NotImp,
        Rcode::Refused => ResponseCode::Refused,
        Rcode::BadVers => ResponseCode::BADVERS,
    }
}

#[cfg(test)]
mod tests;
