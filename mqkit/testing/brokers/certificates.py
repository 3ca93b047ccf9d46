"""Certificates for tests: an authority, a server, a client, and an authority that nobody should trust."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from mqkit.errors import ExtraMissing

if TYPE_CHECKING:
    import trustme


@dataclasses.dataclass(frozen=True, slots=True)
class Certificates:
    """
    Files in PEM form, made by `Certificates.make`.

    The server's certificate is for localhost, 127.0.0.1 and ::1; the client's common name is `client_name`.
    """

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path  # the authority of somebody else: who trusts only this one must refuse the server
    client_name: str

    @classmethod
    def make(cls, folder: Path, *, client_name: str = "app") -> Certificates:
        """
        New certificates as files in `folder`; takes about 0.1 s.

        Raises:
            ExtraMissing: trustme is not installed.
        """
        try:
            import trustme
        except ModuleNotFoundError as exc:
            raise ExtraMissing("certificates for tests need trustme: pip install 'mqkit[testing]'") from exc
        authority, stranger = trustme.CA(), trustme.CA()
        made = cls(
            authority=folder / "authority.pem",
            server=folder / "server.pem",
            server_key=folder / "server.key",
            client=folder / "client.pem",
            client_key=folder / "client.key",
            stranger=folder / "stranger.pem",
            client_name=client_name,
        )
        authority.cert_pem.write_to_path(str(made.authority))
        stranger.cert_pem.write_to_path(str(made.stranger))
        _write(authority.issue_cert("localhost", "127.0.0.1", "::1"), made.server, made.server_key)
        _write(authority.issue_cert("client.invalid", common_name=client_name), made.client, made.client_key)
        return made

    def context(self, *, trusting: Path | None = None, as_client: bool = False) -> ssl.SSLContext:
        """A client's context that trusts `trusting` (the authority if not said) and may show the client's certificate."""
        context = ssl.create_default_context(cafile=str(trusting or self.authority))
        if as_client:
            context.load_cert_chain(self.client, self.client_key)
        return context


def _write(leaf: trustme.LeafCert, chain: Path, key: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    private = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), password=None)
    pkcs8 = serialization.PrivateFormat.PKCS8  # the only one that Java reads
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    key.chmod(0o600)
