"""Files over Xet, in one stream from where an earlier attempt stopped.

The library itself lets Xet write to a new file each time, so that nothing is left to go on from when it is killed.
"""

from __future__ import annotations

from hf_xet import XetFileInfo

from mlxk2.cache.staging import Wanted
from mlxk2.hub import endpoint, private
from mlxk2.hub.client import Connection
from mlxk2.hub.partial import Partial
from mlxk2.hub.repos import Revision


def receive(connection: Connection, revision: Revision, wanted: Wanted, file: Partial) -> None:
    """Write what is missing of a file; the store gets a short-lived token of its own, never the user's."""
    assert wanted.xet_hash is not None
    route = private.xet_connection_info_refresh_url(
        token_type=private.XetTokenType.READ,
        repo_id=revision.repo_id,
        repo_type="model",
        revision=revision.commit,
        endpoint=connection.api.endpoint,
    )
    store = private.refresh_xet_connection_info(
        file_data=private.XetFileData(file_hash=wanted.xet_hash, refresh_route=route), headers=connection.headers
    )
    endpoint.check_store(store.endpoint, connection.api.endpoint)
    session = private.get_xet_session()  # type: ignore[no-untyped-call]
    with session.new_download_stream_group(
        endpoint=store.endpoint,
        token=store.access_token,
        token_expiry_unix_secs=store.expiration_unix_epoch,
        token_refresh_url=route,
        token_refresh_headers=connection.headers,
        custom_headers=private.xet_headers_without_auth(connection.headers),
    ) as group:
        for chunk in group.download_stream(XetFileInfo(wanted.xet_hash, wanted.size), start=file.tell()):
            file.write(chunk)
