from __future__ import annotations

from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.command.output.closing import ui_lines


def test_the_last_lines_name_the_servers_in_use_and_no_password() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        prefect, mlflow = ui_lines("postgresql://me:secret@host/db")
    assert prefect.endswith("prefect server start   then http://127.0.0.1:4200")
    assert "--backend-store-uri postgresql://host/db " in mlflow
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4711/api"}):
        prefect, mlflow = ui_lines("http://me:secret@host:5000")
    assert prefect.split() == ["stages", "and", "artifacts:", "http://127.0.0.1:4711"]
    assert mlflow.split() == ["metrics", "and", "models:", "http://host:5000"]
