"""What is told when the parts are made from the settings."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from consumer.app import building
from consumer.settings import load


def test_what_a_mapping_should_change_is_logged_at_start(tmp_path: Path) -> None:
    """A key of an older version is accepted, and a line says that it has no effect."""
    file = tmp_path / "mapping.toml"
    file.write_text("newer_event_names = true")
    settings = load({"PINSTREAM_MAPPING_FILE": str(file), "HOME": str(tmp_path)}, needs=())
    schema = building.reader_schema(settings, building.local_schemas(settings))
    with capture_logs() as lines:
        building.pipeline(settings, schema)
    [line] = [line for line in lines if line["event"] == "setting"]
    assert line["log_level"] == "warning"
    assert "newer_event_names has no effect any more" in line["text"]
