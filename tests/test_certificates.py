"""storage/certificates.py: what the authority signs, whose keys are whose, and that nothing given out ever changes."""

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.verification import PolicyBuilder, Store
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from storage.certificates import issue, needed_files, registered_sites
from storage.errors import SourceError


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_servers_certificate_is_the_authoritys_for_every_name_asked(tmp_path: Path) -> None:
    issue(tmp_path, ["north"], ["10.7.0.1", "link.example.org"])
    store = Store([_certificate(tmp_path / "sites" / "north" / "ca.crt")])
    for name in (x509.DNSName("localhost"), x509.DNSName("link.example.org")):
        chain = (
            PolicyBuilder()
            .store(store)
            .build_server_verifier(name)
            .verify(_certificate(tmp_path / "link" / "server.crt"), [])
        )
        assert len(chain) == 2
    named = _certificate(tmp_path / "link" / "server.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert {"127.0.0.1", "::1", "10.7.0.1"} <= {str(name.value) for name in named.value}
    # OpenSSL takes the pair of certificate and key.
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
        tmp_path / "link" / "server.crt", tmp_path / "link" / "server.key"
    )


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    issue(tmp_path, ["north"])
    for key in ("authority/ca.key", "link/server.key", "sites/north/site.key"):
        assert stat.S_IMODE((tmp_path / key).stat().st_mode) == 0o600


def test_keys_are_in_the_forms_that_flower_reads(tmp_path: Path) -> None:
    issue(tmp_path, ["north"])
    private = serialization.load_ssh_private_key((tmp_path / "sites" / "north" / "site.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    [site] = registered_sites(tmp_path / "link")
    public = bytes_to_public_key(site.public_pem)
    assert uses_nist_ec_curve(public)
    assert public.public_numbers() == private.public_key().public_numbers()


def test_sites_keep_their_numbers_and_keys_when_more_are_added(tmp_path: Path) -> None:
    issue(tmp_path, ["north", "south"])
    key = (tmp_path / "sites" / "south" / "site.key").read_bytes()
    authority = (tmp_path / "authority" / "ca.crt").read_bytes()
    server = (tmp_path / "link" / "server.crt").read_bytes()
    issued = issue(tmp_path, ["west", "south"])
    assert (issued.authority, issued.server, issued.sites) == (False, False, ("west",))
    assert [(site.name, site.number) for site in registered_sites(tmp_path / "link")] == [
        ("north", 0),
        ("south", 1),
        ("west", 2),
    ]
    assert (tmp_path / "sites" / "south" / "site.key").read_bytes() == key
    assert (tmp_path / "authority" / "ca.crt").read_bytes() == authority
    assert (tmp_path / "link" / "server.crt").read_bytes() == server


def _public_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.write_bytes(key.public_key().public_bytes(*form))
    return path


def test_a_site_may_bring_its_own_key_and_never_another_for_its_name(tmp_path: Path) -> None:
    own = _public_key(tmp_path / "own.pub", ec.generate_private_key(ec.SECP384R1()))
    issue(tmp_path / "certs", ["north"], keys={"south": own})
    assert [site.name for site in registered_sites(tmp_path / "certs" / "link")] == ["north", "south"]
    assert not (tmp_path / "certs" / "sites" / "south").exists()
    other = _public_key(tmp_path / "other.pub", ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(SourceError, match="registered with another key"):
        issue(tmp_path / "certs", keys={"south": other})
    with pytest.raises(SourceError, match="is that of south"):
        issue(tmp_path / "certs", keys={"west": own})
    wrong = _public_key(tmp_path / "wrong.pub", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(SourceError, match="on no NIST curve"):
        issue(tmp_path / "certs", keys={"west": wrong})
    assert len(registered_sites(tmp_path / "certs" / "link")) == 2


@pytest.mark.parametrize("name", ["../north", "", ".", "a/b", "north\n"])
def test_a_name_that_is_no_plain_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot name a site"):
        issue(tmp_path, [name])
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="atalaia certs"):
        registered_sites(tmp_path)
    with pytest.raises(SourceError, match=r"holds no ca\.crt"):
        needed_files(tmp_path, ["ca.crt"], "site")
