"""What the API server says of an object that may not be written."""

from http import HTTPStatus

from tests.servers.control_plane import Answer


def causes(answer: Answer) -> list[str]:
    """Fields and messages, for programs; empty when it may be written."""
    if answer.status < HTTPStatus.BAD_REQUEST:
        return []
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY, answer
    return [f"{cause['field']}: {cause['message']}" for cause in answer.body["details"]["causes"]]
