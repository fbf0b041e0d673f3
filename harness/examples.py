"""Where Hypothesis keeps the examples that failed: in this folder, and for others where ``MINIMAX_M2_EXAMPLES`` says.

    MINIMAX_M2_EXAMPLES=redis://HOST:6379/0          read and written by everybody; needs the extra `redis`
    MINIMAX_M2_EXAMPLES=github:OWNER/REPO            what CI uploaded as the artifact `hypothesis-example-db`; read only
    MINIMAX_M2_EXAMPLES=github:OWNER/REPO/ARTIFACT   of another name; GITHUB_TOKEN where the repository is private

An example is a choice among what a test draws, no code and no pickle: who writes one can only make tests try a case.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    GitHubArtifactDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)

SETTING = "MINIMAX_M2_EXAMPLES"
HERE = Path(".hypothesis/examples")
GITHUB = re.compile(r"github:(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)(?:/(?P<artifact>[\w.-]+))?")
ARTIFACT = "hypothesis-example-db"
# Seconds until a server that does not answer is given up.
PATIENCE = 5.0


def example_database(setting: str, *, downloads: Path | None = None) -> ExampleDatabase:
    """The folder's own examples and those of the setting; ValueError for a setting that is none or does not answer.

    downloads  where artifacts are kept instead of Hypothesis' own folder
    """
    here = DirectoryBasedExampleDatabase(HERE)
    if not setting:
        return here
    if setting.startswith(("redis://", "rediss://", "unix://")):
        return MultiplexedDatabase(here, _redis(setting))
    found = GITHUB.fullmatch(setting)
    if found is None:
        raise ValueError(f"{SETTING}={setting!r} is neither redis://HOST:PORT/NUMBER nor github:OWNER/REPO[/ARTIFACT]")
    artifacts = GitHubArtifactDatabase(
        found["owner"], found["repo"], artifact_name=found["artifact"] or ARTIFACT, path=downloads
    )
    return MultiplexedDatabase(here, ReadOnlyDatabase(artifacts))


def _redis(url: str) -> ExampleDatabase:
    if find_spec("redis") is None:
        raise ValueError(f"{SETTING}={url!r} needs the Python package redis; pip install 'minimax-m2-harness[redis]'")
    from hypothesis.extra.redis import RedisExampleDatabase
    from redis import Redis
    from redis.exceptions import RedisError

    server = Redis.from_url(url, socket_connect_timeout=PATIENCE, socket_timeout=PATIENCE)
    try:
        server.ping()
    except RedisError as error:
        raise ValueError(f"{SETTING}={url!r} does not answer: {error}") from error
    return RedisExampleDatabase(server)
