"""Events: plain values that tell an observer what happened."""

from __future__ import annotations

import dataclasses
import pickle
from typing import get_args

import pytest

from asyncsync import events
from asyncsync.events import Committed, Event, Moved, Started, ignore

KINDS = get_args(Event)
SAMPLE = {"str": "text", "int": 1, "float": 0.5, "Literal": "up"}


def sample(kind: type[Event]) -> Event:
    """An event with some value in every field."""
    fields = dataclasses.fields(kind)
    values = {
        field.name: SAMPLE[str(field.type).partition("[")[0].partition(" |")[0]] for field in fields
    }
    return kind(**values)  # type: ignore[arg-type]


def test_the_union_has_every_event_of_the_module() -> None:
    defined = {
        value
        for value in vars(events).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }

    assert set(KINDS) == defined


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_a_value_that_cannot_change_and_pickles(kind: type[Event]) -> None:
    event = sample(kind)
    name = dataclasses.fields(kind)[0].name

    assert pickle.loads(pickle.dumps(event)) == event == sample(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, name, "other")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_of_an_event_are_named_by_the_caller(kind: type[Event]) -> None:
    with pytest.raises(TypeError):
        kind(*SAMPLE.values())  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_says_what_it_means(kind: type[Event]) -> None:
    generated = f"{kind.__name__}("

    assert kind.__doc__
    assert not kind.__doc__.startswith(generated)


def test_events_of_different_kinds_are_told_apart_by_matching() -> None:
    found: list[str] = []
    for event in (sample(Started), sample(Moved), sample(Committed)):
        match event:
            case Started(direction=direction):
                found.append(direction)
            case Moved(moved_bytes=moved):
                found.append(str(moved))
            case _:
                found.append("other")

    assert found == ["up", "1", "other"]


def test_who_does_not_look_is_told_in_vain() -> None:
    assert ignore(sample(Started)) is None  # type: ignore[func-returns-value]
