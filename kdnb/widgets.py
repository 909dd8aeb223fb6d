"""Controls over a figure in a live notebook; elsewhere the figure alone.

What is shown is a pure function from a state, the value of each control by name, to a figure; tests
call that function. Whether controls can be moved is decided in one place, :func:`live`.
"""

from __future__ import annotations

import base64
import html
import io
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from IPython import get_ipython
from matplotlib.figure import Figure

from kdnb import extras

ipywidgets = extras.late("ipywidgets")


@dataclass(frozen=True)
class Choice:
    """A list to choose from: ``options`` label → value, or a function that gives them for the state
    of the controls before this one. ``value`` is chosen at first, if it is offered."""

    label: str
    options: Mapping[str, object] | Callable[[dict], Mapping[str, object]]
    value: object = None

    def offered(self, state: dict) -> Mapping[str, object]:
        """The options, label → value, beside the ``state`` of the controls before this one."""
        return self.options(state) if callable(self.options) else self.options

    def settled(self, wanted: object, state: dict) -> object:
        """``wanted`` where it is offered, else the first option, None where there is none."""
        values = list(self.offered(state).values())
        return wanted if wanted in values else next(iter(values), None)


@dataclass(frozen=True)
class Slider:
    """A number between ``low`` and ``high`` in steps; ``value`` at first."""

    label: str
    low: float
    high: float
    step: float
    value: float

    def settled(self, wanted: float, state: dict) -> float:
        """``wanted``, moved into the range."""
        return min(max(wanted, self.low), self.high)


Control = Choice | Slider
Action = Callable[[dict], dict]


def live() -> bool:
    """Whether somebody can move controls: a front end sent the request that the kernel works on.

    JupyterLab, Notebook and VS Code name the cell in the metadata of a request. papermill,
    nbconvert and nbval do not, and neither does a script.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    request = kernel.get_parent() or {}
    return bool(request.get("metadata", {}).get("cellId")) or "google.colab" in sys.modules


def settle(controls: Mapping[str, Control], wanted: Mapping[str, object]) -> dict:
    """The state nearest to what is ``wanted``: each control by name has a value that it offers.

    A control may depend on those before it; one that is not in ``wanted`` has its first value.
    """
    state: dict = {}
    for name, control in controls.items():
        state[name] = control.settled(wanted.get(name, control.value), state)
    return state


def explore(
    draw: Callable[..., Figure],
    controls: Mapping[str, Control],
    actions: Mapping[str, Action] | None = None,
    still: Callable[[], Figure] | None = None,
) -> object:
    """The figure ``draw(**state)`` under ``controls`` of the state, as the value of a cell.

    ``actions`` label → function are buttons: the function takes the state, does something, and
    returns what changes in the state. Without a live front end this is the figure that ``still``
    draws, by default that of the first state; so it is where ipywidgets is not installed, with a
    line that says how to install it.
    """
    if live():
        try:
            extras.require("widgets")
        except extras.MissingExtra as error:
            print(error)
        else:
            return _Panel(draw, controls, actions or {})
    return still() if still else draw(**settle(controls, {}))


def png(figure: Figure) -> str:
    """A figure as base64 of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()


class _Panel:
    """Controls and a picture; shown as a widget, or as the picture where widgets are unknown."""

    def __init__(
        self,
        draw: Callable[..., Figure],
        controls: Mapping[str, Control],
        actions: Mapping[str, Action],
    ):
        self.draw, self.controls, self.state, self.image = draw, controls, {}, ""
        self.fields = {name: _field(control) for name, control in controls.items()}
        self.picture, self.busy = ipywidgets.HTML(), False
        self.change({})
        for name, field in self.fields.items():
            field.observe(lambda event, name=name: self.change({name: event["new"]}), "value")
        buttons = []
        for label, action in actions.items():
            buttons.append(ipywidgets.Button(description=label))
            buttons[-1].on_click(lambda _, action=action: self.press(action))
        rows = (list(self.fields.values()), buttons)
        lines = [
            ipywidgets.HBox(row, layout={"flex_flow": "row wrap", "overflow": "visible"})
            for row in rows
            if row
        ]
        self.box = ipywidgets.VBox([*lines, self.picture])

    def change(self, wanted: dict) -> None:
        """Go to the state nearest to what is wanted, and draw it."""
        if self.busy:  # a field that is set here reports that it has changed
            return
        self.busy = True
        try:
            self.state = settle(self.controls, self.state | wanted)
            for name, field in self.fields.items():
                if isinstance(self.controls[name], Choice):
                    field.options = list(self.controls[name].offered(self.state).items())
                field.value = self.state[name]
            self.picture.value = self.drawn()
        finally:
            self.busy = False

    def press(self, action: Action) -> None:
        """Do what a button does, and draw what follows."""
        try:
            changes = action(self.state)
        except Exception as error:
            self.picture.value = _alert(error)
        else:
            self.change(changes)

    def drawn(self) -> str:
        """The figure of the state as HTML, or what went wrong."""
        begun = time.perf_counter()
        try:
            figure = self.draw(**self.state)
            self.image = png(figure)
        except Exception as error:
            return _alert(error)
        title = html.escape(figure.get_suptitle() or "figure")
        seconds = f"<small>{time.perf_counter() - begun:.2f} s</small>"
        picture = f'<img alt="{title}" src="data:image/png;base64,{self.image}">'
        return picture.replace("<img ", '<img style="max-width:100%" ') + f"<div>{seconds}</div>"

    def _repr_mimebundle_(self, **_: object) -> dict:
        return self.box._repr_mimebundle_() | {"image/png": self.image}


def _alert(error: Exception) -> str:
    # a front end shows nothing of what a control's function raises
    return f'<p role="alert">{html.escape(str(error) or type(error).__name__)}</p>'


def _field(control: Control) -> object:
    style = {"description_width": "initial"}
    if isinstance(control, Choice):
        return ipywidgets.Dropdown(description=control.label, style=style)
    values = {"min": control.low, "max": control.high, "step": control.step}
    return ipywidgets.FloatSlider(
        control.value, description=control.label, style=style, continuous_update=False, **values
    )
