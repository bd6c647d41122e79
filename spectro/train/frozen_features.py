"""The frozen first part of a network, computed once per picture instead of once per epoch.

The layers that a plan freezes give the same activations for the same picture, if pictures are not altered. The
activations are computed once and kept, and training starts from them.
"""

from collections.abc import Sequence

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from spectro.model.backbones import Plan, SpectrogramNet, trainable

RANDOM = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "bernoulli",
    "bernoulli_",
}
"""Functions with random results; a trace would keep the mode, training or not, in which it was made."""
ESTIMATES = nn.modules.batchnorm._NormBase


class FrozenPrefix:
    """A network in two parts: the layers that a plan never trains, and the rest; both share the network's own layers.

    The parts keep the device and dtype that the network has when they are made.

    Args:
        net: the network.
        plan: `head` or `last-block`.

    Raises:
        ValueError: the network cannot be divided: it cannot be traced, its backbone draws random numbers in training,
            or its first layers are not frozen.
    """

    def __init__(self, net: SpectrogramNet, plan: Plan) -> None:
        if plan not in ("head", "last-block"):
            raise ValueError(f"plan {plan} freezes no layer for the whole run")
        trained, modules = trainable(net, plan), dict(net.named_modules())
        if any(_chance(module) > 0 for module in net.backbone.modules()):
            raise ValueError(f"{net.backbone_name} drops features at random in training")
        try:
            graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(net)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{net.backbone_name} cannot be traced ({error})") from error
        if any(getattr(node.target, "__name__", node.target) in RANDOM for node in graph.nodes):
            raise ValueError(f"{net.backbone_name} draws random numbers")
        fixed: set[fx.Node] = set()  # always the same for the same picture
        seen: set[fx.Node] = set()  # depends on the picture
        for node in graph.nodes:
            if node.op == "placeholder" or seen & set(node.all_input_nodes):
                seen.add(node)
            if node.op == "placeholder" or not (
                node.op == "output" or _moves(node, modules, trained) or set(node.all_input_nodes) - fixed
            ):
                fixed.add(node)
        if not any(node.op == "call_module" for node in fixed):
            raise ValueError(f"no layer of {net.backbone_name} is frozen")
        border = [node for node in graph.nodes if node in fixed & seen and set(node.users) - fixed]
        self._start = _part(net, graph, [node for node in graph.nodes if node in fixed], border)
        self._rest = _part(net, graph, [node for node in graph.nodes if node not in fixed], None, border)

    def start(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the activations of pictures; as a rule tensors whose first axis is the picture."""
        found: tuple[torch.Tensor, ...] = self._start(pictures)
        return found

    def rest(self, activations: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits of shape (batch, labels) for activations."""
        logits: torch.Tensor = self._rest(*activations)
        return logits


def _part(
    net: nn.Module,
    graph: fx.Graph,
    nodes: list[fx.Node],
    results: list[fx.Node] | None,
    given: Sequence[fx.Node] = (),
) -> fx.GraphModule:
    """Return nodes of a graph as a module that takes `given` and returns `results` (None: the graph's own output)."""
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in given}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or a constant, which both parts use
            copies[node] = part.node_copy(node, copy)
        return copies[node]

    for node in nodes:
        copy(node)
    if results is not None:
        part.output(tuple(copies[node] for node in results))
    return fx.GraphModule(net, part)


class _Tracer(fx.Tracer):
    """Treats modules that timm marks as untraceable as one node each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one node of the graph."""
        return isinstance(m, tuple(get_notrace_modules())) or super().is_leaf_module(m, module_qualified_name)


def _moves(node: fx.Node, modules: dict[str, nn.Module], trained: set[str]) -> bool:
    """Return whether a node's result may change between two passes of the same input."""
    if node.op == "get_attr":
        return str(node.target) in trained
    if node.op != "call_module":
        return False
    module, name = modules[str(node.target)], str(node.target)
    own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
    return bool(own & trained) or any(
        _chance(one) > 0 or (isinstance(one, ESTIMATES) and not list(one.parameters())) for one in module.modules()
    )


def _chance(module: nn.Module) -> float:
    """Return the share of features, or of whole paths, that a module drops in training."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    return float(getattr(module, "drop_prob", None) or 0.0)  # timm's DropPath
