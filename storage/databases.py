"""Where the servers keep their tables: SQLite files under the home folder, or one PostgreSQL database for a team."""

import asyncio
from dataclasses import dataclass
from importlib.util import find_spec

from sqlalchemy.engine.url import URL, make_url
from sqlalchemy.exc import ArgumentError

from storage.layout import Layout
from storage.services import ServiceError

SCHEMAS = ("prefect", "mlflow")
"""In PostgreSQL each server has a schema of its own: both keep their migrations in a table of the same name."""
_CONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class Databases:
    """The addresses of both servers' tables."""

    prefect: str
    mlflow: str
    shown: str
    """For people: without the password."""
    prefect_schemas: str | None = None
    """PostgreSQL's search path for Prefect."""


def databases(url: str | None, layout: Layout) -> Databases:
    """The servers' databases; None: SQLite. Raises ServiceError for any address but a PostgreSQL database's."""
    if url is None:
        prefect, mlflow = layout.prefect / "prefect.db", layout.mlflow / "mlflow.db"
        return Databases(f"sqlite+aiosqlite:///{prefect}", f"sqlite:///{mlflow}", f"SQLite under {layout.home}")
    found = _postgresql(url)
    if find_spec("psycopg2") is None:
        raise ServiceError("MLflow needs a driver for PostgreSQL; install it: pip install psycopg2-binary.")
    return Databases(
        _text(found.set(drivername="postgresql+asyncpg")),
        _text(found.set(drivername="postgresql").update_query_dict({"options": f"-csearch_path={SCHEMAS[1]}"})),
        found.render_as_string(hide_password=True),
        # Prefect's migrations look for the extension pg_trgm in the schema where extensions usually lie.
        f"{SCHEMAS[0]},public",
    )


def prepare_database(url: str) -> None:
    """Make the schemas where they are missing; raises ServiceError where the database cannot be reached or refuses."""
    found = _postgresql(url)
    try:
        asyncio.run(_make_schemas(_text(found.set(drivername="postgresql"))))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        shown = found.render_as_string(hide_password=True)
        raise ServiceError(f"The database {shown} does not answer or refuses: {reason}") from error


async def _make_schemas(address: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(address, timeout=_CONNECT_SECONDS)
    try:
        for schema in SCHEMAS:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    finally:
        await connection.close()


def _postgresql(url: str) -> URL:
    try:
        found = make_url(url)
    except ArgumentError as error:
        raise ServiceError("The database's address cannot be read; write postgresql://USER@HOST/DATABASE.") from error
    if found.get_backend_name() not in {"postgresql", "postgres"} or not found.database:
        raise ServiceError(
            f"{found.render_as_string()} is not the address of a PostgreSQL database; "
            "write postgresql://USER@HOST/DATABASE, or leave it out for SQLite."
        )
    return found


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
