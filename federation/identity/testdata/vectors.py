#!/usr/bin/env python3
"""Writes the test vectors of this folder, the same bytes at each run.

A second implementation of what docs/protocol.md says of join proofs, record signatures, the passthrough header and
sealed values, made from the text alone and with another library (`pip install cryptography`). The tests of
federation/identity read what it wrote; nothing at build or test time runs it.
"""

import datetime
import hashlib
import hmac
import pathlib
import struct

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = pathlib.Path(__file__).parent
# 2026-06-01T00:00:00Z
NOON = 1_780_272_000
DOMAIN = "west.mesh.internal"


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def fixed(label, count=32):
    """Bytes that stand for random ones."""
    return hashlib.shake_256(b"hanse test vector " + label.encode()).digest(count)


def write(name, comment, values):
    width = max(len(key) for key in values)
    lines = [f"# {line}" for line in comment.strip().splitlines()]
    for key, value in values.items():
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, int):
            value = struct.pack(">Q", value)
        lines.append(f"{key.ljust(width)} = {value.hex()}")
    (HERE / name).write_text("\n".join(lines) + "\n")


# === join proof ===


def join_proof():
    mac = lambda key, *parts: hmac.new(key, b"".join(parts), hashlib.sha256).digest()
    secret, exporter = fixed("secret"), fixed("exporter")
    candidate, pin, admission = fixed("candidate", 700), fixed("pin"), fixed("admission")
    key = mac(secret, b"hanse-join-proof-v1")
    covered = exporter + sha256(candidate) + pin
    write(
        "join-proof.txt",
        "The join proof: both proofs of one join. The candidate stands for a serialized hanse.record.v1.Candidate.",
        {
            "secret": secret,
            "proof_key": key,
            "exporter": exporter,
            "candidate": candidate,
            "issuer_pin": pin,
            "admission": admission,
            "joiner_proof": mac(key, b"hanse-join-v1\0joiner\0", covered),
            "issuer_proof": mac(key, b"hanse-join-v1\0issuer\0", covered, admission),
        },
    )


# === certificates ===


def ec_key(label):
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return ec.derive_private_key(int.from_bytes(fixed(label), "big") % (order - 1) + 1, ec.SECP256R1())


def pkcs8(key):
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def spki(key):
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def certificate(label, subject, issuer, key, signer, uri, days, ca):
    at = lambda seconds: datetime.datetime.fromtimestamp(NOON + seconds, datetime.timezone.utc)
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])
    builder = (
        x509.CertificateBuilder()
        .serial_number(int.from_bytes(b"\x40" + fixed(label + " serial", 15), "big"))
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .not_valid_before(at(-300))
        .not_valid_after(at(int(days * 86400)))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=not subject)
        .add_extension(
            x509.KeyUsage(not ca, False, False, False, False, ca, False, False, False), critical=True
        )
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    made = builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True)
    return made.public_bytes(serialization.Encoding.DER)


def chain():
    root, intermediate, leaf = ec_key("root"), ec_key("intermediate"), ec_key("leaf")
    account = f"spiffe://{DOMAIN}/ns/shop/sa/web"
    return {
        "root_key": root,
        "leaf_key": leaf,
        "root": certificate("root", "root", "root", root, root, f"spiffe://{DOMAIN}", 3650, True),
        "intermediate": certificate(
            "intermediate", "intermediate", "root", intermediate, root, f"spiffe://{DOMAIN}", 3650, True
        ),
        "leaf": certificate("leaf", "", "intermediate", leaf, intermediate, account, 1 / 24, False),
    }


# === passthrough header ===


def tlv(kind, value):
    return struct.pack(">BH", kind, len(value)) + value


def header(certificates, purpose, destination, connection, instance, at, hello_digest):
    body = tlv(0xE0, bytes([1, purpose])) + tlv(0xE1, destination.encode()) + tlv(0xE2, connection)
    if instance is not None:
        body += tlv(0xE3, instance)
    body += tlv(0xE4, struct.pack(">Q", at))
    body += tlv(0xE5, certificates["leaf"]) + tlv(0xE5, certificates["intermediate"])
    body += tlv(0xE6, hello_digest)
    preamble = b"\r\n\r\n\0\r\nQUIT\n\x21\x00" + struct.pack(">H", len(body) + 3 + 64)
    signed = b"hanse-passthrough-v1\0" + preamble + body
    key = certificates["leaf_key"]
    r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return preamble + body + tlv(0xE7, r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def passthrough():
    certificates = chain()
    hello, connection, instance = fixed("hello", 1500), fixed("connection", 16), fixed("instance", 16)
    destination = "payments.billing.east.mesh.internal"
    opening = header(certificates, 1, destination, connection, None, NOON * 1000 + 123, sha256(hello))
    renewing = header(certificates, 1, destination, connection, instance, NOON * 1000 + 456, sha256(hello))
    extending = header(certificates, 2, destination, connection, None, NOON * 1000 + 789, sha256(hello))
    for name, value in [("open", opening), ("renew", renewing), ("extend", extending)]:
        (HERE / f"passthrough-{name}.bin").write_bytes(value)
    write(
        "passthrough.txt",
        "The passthrough header: what passthrough-{open,renew,extend}.bin say. Numbers are 64 bits, big-endian;\n"
        "times are milliseconds since 1970. leaf_key is PKCS #8. The hello stands for the records of a ClientHello.",
        {
            "trust_domain": DOMAIN,
            "source": f"spiffe://{DOMAIN}/ns/shop/sa/web",
            "root": certificates["root"],
            "intermediate": certificates["intermediate"],
            "leaf": certificates["leaf"],
            "leaf_key": pkcs8(certificates["leaf_key"]),
            "destination": destination,
            "connection": connection,
            "instance": instance,
            "open_at": NOON * 1000 + 123,
            "renew_at": NOON * 1000 + 456,
            "extend_at": NOON * 1000 + 789,
            "hello": hello,
            "hello_digest": sha256(hello),
        },
    )


# === records ===


def record():
    root = chain()["root"]
    key = ed25519.Ed25519PrivateKey.from_private_bytes(fixed("replication"))
    public = key.public_key().public_bytes_raw()
    content = fixed("record", 300)
    signature = key.sign(b"hanse-record-v1\0" + content)
    write(
        "record.txt",
        "A record's envelope and a cluster's id. The record stands for a serialized hanse.record.v1.Record.",
        {
            "root": root,
            "replication_public": public,
            "cluster_id": sha256(b"hanse-cluster-v1\0", sha256(root), public),
            "record": content,
            "digest": sha256(content),
            "signature": signature,
            # Field 1 of 300 bytes, field 2 of 64.
            "envelope": b"\x0a\xac\x02" + content + b"\x12\x40" + signature,
        },
    )


# === sealed values ===


def sealed():
    kek, aad, value = fixed("kek"), b"keys/self", b"a private key in the clear"
    identity = sha256(b"hanse-kek-id-v1\0", kek)[:8]
    bound = lambda purpose: b"hanse-sealed-v1\0" + purpose + b"\0" + identity + aad
    data_key, first, second = fixed("data key"), fixed("first nonce", 12), fixed("second nonce", 12)
    wrapped = first + AESGCM(kek).encrypt(first, data_key, bound(b"key"))
    inner = second + AESGCM(data_key).encrypt(second, value, bound(b"value"))
    # HPKE makes a random key of its own, so its output is new each time: what is there is kept if it still opens.
    recipient = x25519.X25519PrivateKey.from_private_bytes(fixed("sealing"))
    info = b"hanse-seal-v1\0" + aad
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    before = [
        line.split("=")[1].strip()
        for line in ((HERE / "sealed.txt").read_text().splitlines() if (HERE / "sealed.txt").exists() else [])
        if line.startswith("sealed_to")
    ]
    to_other = bytes.fromhex(before[0]) if before else b"\x01" + suite.encrypt(
        value, recipient.public_key(), info=info
    )
    assert suite.decrypt(to_other[1:], recipient, info=info) == value
    write(
        "sealed.txt",
        "A value sealed at rest, and the same value sealed to another cluster (HPKE, RFC 9180).",
        {
            "kek": kek,
            "aad": aad,
            "value": value,
            "sealed": b"\x01" + identity + wrapped + inner,
            "recipient_private": fixed("sealing"),
            "recipient_public": recipient.public_key().public_bytes_raw(),
            "sealed_to": to_other,
        },
    )


if __name__ == "__main__":
    join_proof()
    passthrough()
    record()
    sealed()
