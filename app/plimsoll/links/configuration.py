"""The file of links: which outside homes there are, as the operator wrote them down.

Everyone else names a link by its name alone. It is the name of its collection too.

    [links.ships]
    kind = "postgres"
    url_env = "SHIPS_DATABASE_URL"
    table = "ships"
    text = "description"
    vector = "embedding"
    space = "ada-002"
    dimensions = 1536
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from plimsoll.corpora.records import COLLECTION_NAME, MOST_DIMENSIONS, Space
from plimsoll.errors import SettingsError
from plimsoll.files import who_else_may_write
from plimsoll.mistakes import mistakes_of, place_of, told
from plimsoll.nearest import did_you_mean

LinkName: TypeAlias = Annotated[str, StringConstraints(pattern=COLLECTION_NAME)]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class LinkSettings(BaseModel):
    """What every kind has: where a row's text is, and what its vectors are of.

    Either `model`, which is served, or `space`, the name of a foreign one, with its dimensions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Name = "text"
    model: Name | None = None
    space: Name | None = None
    dimensions: Annotated[int, Field(ge=1, le=MOST_DIMENSIONS)] | None = None
    follow: bool = False

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if (self.model is None) == (self.space is None):
            raise ValueError("write either model, which is served, or space, the name of another")
        if self.space is not None and self.dimensions is None:
            raise ValueError("a foreign space comes with its dimensions")
        return self

    @property
    def foreign_space(self) -> Space | None:
        """The space of the vectors that are there, where no model here embeds into it."""
        if self.space is None or self.dimensions is None:
            return None
        return Space.foreign(self.space, self.dimensions)


class PostgresLink(LinkSettings):
    """A table with a vector column of pgvector. url_env: variable of the connection string."""

    kind: Literal["postgres"]
    url_env: Name
    db_schema: Annotated[Name, Field(alias="schema")] = "public"
    table: Name
    id: Name = "id"
    vector: Name = "vector"

    @property
    def home(self) -> str:
        """What no other link may lead to."""
        return f"the table {self.db_schema}.{self.table} of {self.url_env}"


class FileLink(LinkSettings):
    """Files that are only read, and a folder that gets the vectors of other spaces.

    files: paths or patterns such as /data/ships/*.jsonl, read in the order of their names.
    """

    kind: Literal["jsonl", "parquet"]
    files: Annotated[tuple[Name, ...], Field(min_length=1)]
    folder: Path
    id: Name = "id"
    vector: Name = "vector"

    @property
    def home(self) -> str:
        """What no other link may write to."""
        return f"the folder {self.folder.resolve()}"


class QdrantLink(LinkSettings):
    """Points of the collection that an alias of Qdrant leads to. text: key of the payload.

    url_env and api_key_env: variables of the address, and of the key if there is one. vector: of a
    point with several; None is the one without a name. read_again_s: between two readings of all
    points, which notice what has changed.
    """

    kind: Literal["qdrant"]
    url_env: Name
    api_key_env: Name | None = None
    alias: Name
    vector: Name | None = None
    read_again_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0

    @property
    def home(self) -> str:
        """What no other link may lead to."""
        return f"the alias {self.alias} of {self.url_env}"


AnyLink: TypeAlias = PostgresLink | FileLink | QdrantLink
Link: TypeAlias = Annotated[AnyLink, Field(discriminator="kind")]

KINDS: Mapping[str, type[LinkSettings]] = {
    "postgres": PostgresLink,
    "jsonl": FileLink,
    "parquet": FileLink,
    "qdrant": QdrantLink,
}


class _LinksFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    links: dict[LinkName, Link] = {}

    @model_validator(mode="after")
    def _one_link_of_a_home(self) -> Self:
        """Two would take each other's notes of changes, and drop each other's vectors."""
        names = dict[str, str]()
        for name, link in self.links.items():
            other = names.setdefault(link.home, name)
            if other != name:
                raise ValueError(f"{other} and {name} both lead to {link.home}: one link may")
        return self


def read_links(path: Path) -> Mapping[str, AnyLink]:
    """The links of a file, by name. Raises SettingsError, with the key that is wrong."""
    try:
        if fault := who_else_may_write(path):
            raise SettingsError(
                f"PLIMSOLL_LINKS: {path} says where this server reads and writes, and {fault}"
            )
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"PLIMSOLL_LINKS: {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"PLIMSOLL_LINKS: {path} is no TOML file: {error}") from error
    try:
        return _LinksFile.model_validate(content).links
    except ValidationError as error:
        raise SettingsError(
            f"PLIMSOLL_LINKS: {path}: {'; '.join(map(_told, mistakes_of(error)))}"
        ) from error


def _told(mistake: ErrorDetails) -> str:
    """A mistake in words; its place: links, name of the link, its kind, key; or less of it."""
    place = mistake["loc"]
    if mistake["type"] != "extra_forbidden":
        return told(mistake)
    if len(place) == 1:
        model: type[BaseModel] = _LinksFile
    else:
        model = KINDS[str(place[2])]
    keys = [field.alias or name for name, field in model.model_fields.items()]
    return f"{place_of(mistake)} is no key; {did_you_mean(str(place[-1]), keys)}"
