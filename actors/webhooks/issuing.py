"""Certificates of our own as bytes: what a Secret holds is read, and made anew.

P-256 keys, X.509 v3 with the extensions that strict clients ask for (RFC 5280). Only a replica that keeps certificates
imports this: the library costs it 12 MB of memory.
"""

import base64
import datetime
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from actors.webhooks.rotation import BACKDATE_SECONDS, Authority, Kept, Leaf, Step, Terms

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
TRUSTED: Final = "ca.crt"
"""All authorities that are trusted, the newest first."""
SIGNING: Final = "ca.key"
"""Private keys of those that sign."""
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----\n?", re.DOTALL)
_UNREADABLE: Final = (ValueError, TypeError, x509.InvalidVersion, x509.UnsupportedGeneralNameType)


def read(data: Mapping[str, bytes]) -> Kept:
    """What a Secret's data are. What cannot be read is not there."""
    certificates = _certificates(data.get(TRUSTED, b""))
    keys = {_public(key) for key in _keys(data.get(SIGNING, b""))}
    authorities = tuple(_authority(one, signs=_public_of(one) in keys) for one in certificates)
    leaves, own = _certificates(data.get(CERTIFICATE, b"")), _keys(data.get(KEY, b""))
    if not leaves or not own or _public_of(leaves[0]) != _public(own[0]):
        return Kept(authorities)
    signer = next((identity(one) for one in certificates if _has_signed(one, leaves[0])), "")
    begins, ends = _life(leaves[0])
    return Kept(authorities, Leaf(signer, begins, ends, _hosts(leaves[0])))


def change(data: Mapping[str, bytes], step: Step, terms: Terms, *, now: float, name: str) -> dict[str, bytes]:
    """The data after a step. `name` is the subject of what is made."""
    certificates = [one for one in _certificates(data.get(TRUSTED, b"")) if identity(one) not in step.drop]
    forgotten = {_public_of(one) for one in _certificates(data.get(TRUSTED, b"")) if identity(one) in step.forget}
    keys = [key for key in _keys(data.get(SIGNING, b"")) if _public(key) not in forgotten]
    after = dict(data)
    signer = step.sign
    if step.new_authority:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _make_authority(f"{name}-ca", key, now=now, seconds=terms.authority)
        certificates.insert(0, made)
        keys.insert(0, key)
        signer = identity(made) if step.sign_by_new else ""
    if signer:
        by = next(one for one in certificates if identity(one) == signer)
        with_key = next(key for key in keys if _public(key) == _public_of(by))
        own = ec.generate_private_key(ec.SECP256R1())
        leaf = _make_leaf(name, own, by, with_key, terms, now=now)
        after[CERTIFICATE], after[KEY] = _pem(leaf), _private_pem(own)
    after[TRUSTED] = b"".join(_pem(one) for one in certificates)
    after[SIGNING] = b"".join(_private_pem(key) for key in keys)
    return after


def bundled(text: str) -> frozenset[str]:
    """The authorities in a webhook's `caBundle`; what is no base64 holds none."""
    try:
        pem = base64.b64decode(text, validate=True)
    except ValueError:
        return frozenset()
    return frozenset(identity(one) for one in _certificates(pem))


def identity(certificate: x509.Certificate) -> str:
    """The name of an authority here."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()[:16]


# ---------------------------------------------------------------- reading


def _certificates(pem: bytes) -> list[x509.Certificate]:
    found = []
    for block in _blocks(pem, "CERTIFICATE"):
        try:
            found.append(x509.load_pem_x509_certificate(block))
        except _UNREADABLE:
            continue
    return found


def _keys(pem: bytes) -> list[PrivateKeyTypes]:
    found = []
    for block in _blocks(pem, "PRIVATE KEY"):
        try:
            found.append(serialization.load_pem_private_key(block, None))
        except _UNREADABLE:
            continue
    return found


def _blocks(pem: bytes, what: str) -> Iterable[bytes]:
    return (found[0] for found in _BLOCK.finditer(pem) if found[1].decode().endswith(what))


def _authority(certificate: x509.Certificate, *, signs: bool) -> Authority:
    begins, ends = _life(certificate)
    return Authority(identity(certificate), begins, ends, signs)


def _life(certificate: x509.Certificate) -> tuple[float, float]:
    return (
        certificate.not_valid_before_utc.timestamp() + BACKDATE_SECONDS,
        certificate.not_valid_after_utc.timestamp(),
    )


def _hosts(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return frozenset()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return frozenset((*names.get_values_for_type(x509.DNSName), *addresses))


def _has_signed(authority: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def _public_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _public(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


# ---------------------------------------------------------------- making


def _make_authority(name: str, key: ec.EllipticCurvePrivateKey, *, now: float, seconds: float) -> x509.Certificate:
    # The key is in the name: two authorities that are trusted at once must not be taken for each other.
    stem = hashlib.sha256(_public(key)).hexdigest()[:8]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}-{stem}")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(subject, subject, key, begins=now, ends=now + seconds)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_leaf(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    signing: PrivateKeyTypes,
    terms: Terms,
    *,
    now: float,
) -> x509.Certificate:
    assert isinstance(signing, ec.EllipticCurvePrivateKey)  # we have made it
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    ends = min(now + terms.leaf, authority.not_valid_after_utc.timestamp())
    hosts = x509.SubjectAlternativeName([_host(host) for host in sorted(terms.hosts)])
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return (
        _builder(subject, authority.subject, key, begins=now, ends=ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(hosts, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(by, critical=False)
        .sign(signing, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, begins: float, ends: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(begins - BACKDATE_SECONDS, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(ends, datetime.UTC))
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
