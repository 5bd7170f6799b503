"""A test authority for a federation: TLS certificates of the link, and a pair of keys for each site.

    FOLDER/authority/   ca.key, ca.crt         stays where it was made; only needed to sign again
    FOLDER/link/        ca.crt, server.crt, server.key, sites.json          for the machine of the link
    FOLDER/sites/NAME/  ca.crt, site.key, site.pub                          for the machine of the site

`sites.json` is the registration: each site's name, its number (its partition from the first round to the last) and its
public key. Private keys can be read by their owner only. What is there is kept: a number or a key never changes.
"""

import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storage.disks import unwritten
from storage.errors import SourceError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CA, SERVER, SERVER_KEY = "ca.crt", "server.crt", "server.key"
SITE_KEY, SITE_PUBLIC = "site.key", "site.pub"
REGISTRATION = "sites.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 397
_BACKDATED = timedelta(hours=1)
"""Clocks of other machines may be behind."""


@dataclass(frozen=True)
class RegisteredSite:
    """A site as the link knows it."""

    name: str
    number: int
    """Its partition: what it is drawn and summed by."""
    public_key: str
    """OpenSSH form of a key on a NIST curve."""

    @property
    def public_pem(self) -> bytes:
        """The key as Flower registers nodes by it."""
        return _as_pem(self.public_key, self.name)


@dataclass(frozen=True)
class Issued:
    """What one call made."""

    authority: bool
    server: bool
    sites: tuple[str, ...]


def issue(
    folder: Path, names: Sequence[str] = (), addresses: Sequence[str] = (), keys: Mapping[str, Path] | None = None
) -> Issued:
    """Make what is missing in a folder: authority, the link's certificate, and a pair of keys for each of `names`.

    `addresses`: names and addresses of the link beside those of loopback; when one is new, the certificate is made
    again. `keys`: public keys (OpenSSH) of sites that made their pair themselves. Raises SourceError for a name or key
    that cannot be, StorageError where nothing can be written.
    """
    for name in (*names, *(keys or {})):
        if not _NAME.fullmatch(name):
            raise SourceError(f"{name!r} cannot name a site: use letters, digits, dots, dashes and underscores.")
    try:
        authority = _authority(folder)
        server = _server(folder, addresses)
        _copy(folder / "authority" / CA, folder / "link" / CA)
        added = [name for name in names if _site_keys(folder, name)]
        own = {name: _own_key(path) for name, path in (keys or {}).items()}
        pairs = {name: (folder / "sites" / name / SITE_PUBLIC).read_text().strip() for name in names}
        added += _register(folder / "link" / REGISTRATION, pairs | own)
    except OSError as error:
        raise unwritten(error, f"the certificates were not written to {error.filename or folder}") from error
    return Issued(authority, server, tuple(dict.fromkeys(added)))


def registered_sites(link: Path) -> list[RegisteredSite]:
    """The sites of a link's folder by their numbers, from 0 on; raises SourceError where there are none."""
    path = link / REGISTRATION
    try:
        found = [RegisteredSite(**facts) for facts in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"{link} holds no registered sites; make some: atalaia certs FOLDER --site NAME.") from error
    return sorted(found, key=lambda site: site.number)


def needed_files(folder: Path, names: Sequence[str], whose: str) -> list[Path]:
    """The paths of files that must be there; raises SourceError for the first that is not."""
    for name in names:
        if not (folder / name).is_file():
            raise SourceError(f"{folder} holds no {name}; give the folder that `atalaia certs` made for the {whose}.")
    return [folder / name for name in names]


def _authority(folder: Path) -> bool:
    place = folder / "authority"
    if (place / CA).is_file() and (place / "ca.key").is_file():
        return False
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Atalaia federation")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = _dated(x509.CertificateBuilder(), _AUTHORITY_DAYS).subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA384())
    _write_key(place / "ca.key", key)
    _write(place / CA, certificate.public_bytes(serialization.Encoding.PEM))
    return True


def _server(folder: Path, addresses: Sequence[str]) -> bool:
    """Make the link's certificate unless there is one that names all addresses; those it named before stay in it."""
    place = folder / "link"
    before = _named_in(place / SERVER)
    wanted = list(dict.fromkeys([*LOOPBACK, *before, *addresses]))
    if set(wanted) == set(before) and (place / SERVER_KEY).is_file():
        return False
    signer = serialization.load_pem_private_key((folder / "authority" / "ca.key").read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise SourceError(f"{folder / 'authority' / 'ca.key'} is not a key that `atalaia certs` made.")
    authority = x509.load_pem_x509_certificate((folder / "authority" / CA).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[-1])])
    builder = _dated(x509.CertificateBuilder(), _SERVER_DAYS).subject_name(subject).issuer_name(authority.subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())  # type: ignore[arg-type]
    builder = builder.add_extension(signed_by, False)
    certificate = builder.sign(signer, hashes.SHA384())
    _write_key(place / SERVER_KEY, key)
    _write(place / SERVER, certificate.public_bytes(serialization.Encoding.PEM))
    return True


def _dated(builder: x509.CertificateBuilder, days: int) -> x509.CertificateBuilder:
    today = datetime.now(UTC)
    return builder.not_valid_before(today - _BACKDATED).not_valid_after(today + timedelta(days=days))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9*]([A-Za-z0-9.-]*[A-Za-z0-9])?", name):
        raise SourceError(f"{name!r} is neither an address nor a host's name.")
    return x509.DNSName(name)


def _named_in(certificate: Path) -> list[str]:
    if not certificate.is_file():
        return []
    names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return [str(name.value) for name in names.value]


def _site_keys(folder: Path, name: str) -> bool:
    place = folder / "sites" / name
    _copy(folder / "authority" / CA, place / CA)
    if (place / SITE_KEY).is_file() and (place / SITE_PUBLIC).is_file():
        return False
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write_key(place / SITE_KEY, key, serialization.PrivateFormat.OpenSSH)
    _write(place / SITE_PUBLIC, public + b" " + name.encode() + b"\n")
    return True


def _own_key(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"Cannot read the public key {path}; check the path.") from error
    _as_pem(text, str(path))
    return text


def _as_pem(public_key: str, whose: str) -> bytes:
    try:
        key = serialization.load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SourceError(
            f"The public key of {whose} is not in OpenSSH form; make it by ssh-keygen -t ecdsa."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SourceError(f"The public key of {whose} is on no NIST curve; make it by ssh-keygen -t ecdsa -b 384.")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _register(path: Path, keys: Mapping[str, str]) -> list[str]:
    """Give each new site the next number; raises SourceError where a known name comes with another key."""
    known = {site.name: site for site in registered_sites(path.parent)} if path.is_file() else {}
    added = []
    for name, key in keys.items():
        old = known.get(name)
        if old is not None and _as_pem(old.public_key, name) != _as_pem(key, name):
            raise SourceError(f"The site {name} is registered with another key in {path}; use another name.")
        twin = next((site.name for site in known.values() if site.public_pem == _as_pem(key, name)), name)
        if twin != name:
            raise SourceError(f"The key of {name} is that of {twin}; each site needs one of its own.")
        if old is None:
            known[name] = RegisteredSite(name, len(known), key)
            added.append(name)
    _write(path, json.dumps([asdict(site) for site in known.values()], indent=1).encode())
    return added


def _copy(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write_key(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> None:
    data = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    _write(path, data, mode=0o600)


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
