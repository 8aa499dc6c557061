"""Ways to break each of FINN's rules in a good QONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx


class Violations:
    """Ways to spoil a good graph, each returning the name of the node or tensor that the rule should name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph

    def first(self, kind: str, index: int = 0) -> Any:
        return [node for node in self.graph.node if node.op_type == kind][index]

    def reader(self, tensor: str) -> Any:
        return next(node for node in self.graph.node if tensor in node.input)

    def set_constant(self, name: str, value: Any) -> None:
        kept = [tensor for tensor in self.graph.initializer if tensor.name != name]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, numpy_helper.from_array(np.array(value, dtype=np.float32), name)])

    def set_attribute(self, node: Any, name: str, value: Any) -> str:
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
        return str(node.name)

    def relu_quantizer(self) -> Any:
        return self.reader(self.first("Relu").output[0])

    def input_quantizer(self) -> Any:
        return self.reader(self.graph.input[0].name)

    def bias_quantizer(self) -> Any:
        constants = {tensor.name for tensor in self.graph.initializer}
        widths = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        return next(
            node
            for node in self.graph.node
            if node.op_type == "Quant" and node.input[0] in constants and widths[node.input[3]] == 32
        )

    def join(self) -> Any:
        """Return the addition of two activations."""
        makers = {output: node for node in self.graph.node for output in node.output}
        constants = {tensor.name for tensor in self.graph.initializer}
        return next(
            node
            for node in self.graph.node
            if node.op_type == "Add"
            and all(makers[name].op_type == "Quant" and makers[name].input[0] not in constants for name in node.input)
        )

    def dangling(self) -> str:
        relu = self.first("Relu")
        relu.input[0] = "nowhere"
        return str(relu.name)

    def dangling_output(self) -> str:
        self.graph.output[0].name = "nowhere"
        return "nowhere"

    def foreign(self) -> str:
        pool = self.first("GlobalAveragePool")
        pool.op_type = "ReduceMean"
        return str(pool.name)

    def dynamic(self) -> str:
        self.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        return str(self.graph.input[0].name)

    def second_quantizer(self) -> str:
        quantizer = self.relu_quantizer()
        another = helper.make_node("Quant", list(quantizer.input), ["again"], name="Again", domain=quantizer.domain)
        another.attribute.extend(quantizer.attribute)
        self.reader(quantizer.output[0]).input[0] = "again"
        self.graph.node.append(another)
        return str(self.first("Relu").name)

    def raw_reader(self) -> str:
        relu = self.first("Relu")
        join = self.join()
        join.input[1] = relu.output[0]
        return str(relu.name)

    def bare_relu(self) -> str:
        relu, quantizer = self.first("Relu"), self.relu_quantizer()
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                if name == quantizer.output[0]:
                    node.input[position] = relu.output[0]
        self.graph.node.remove(quantizer)
        return str(relu.name)

    def signed_relu(self) -> str:
        return self.set_attribute(self.relu_quantizer(), "signed", 1)

    def narrow_relu(self) -> str:
        return self.set_attribute(self.relu_quantizer(), "narrow", 1)

    def unsigned_input(self) -> str:
        return self.set_attribute(self.input_quantizer(), "signed", 0)

    def shifted(self) -> str:
        quantizer = self.input_quantizer()
        self.set_constant(quantizer.input[2], 3.0)
        return str(quantizer.name)

    def flat_zero_point(self) -> str:
        quantizer = self.bias_quantizer()
        self.set_constant(quantizer.input[2], 0.0)
        return str(quantizer.name)

    def wide(self) -> str:
        quantizer = self.relu_quantizer()
        self.set_constant(quantizer.input[3], 9.0)
        return str(quantizer.name)

    def fractional(self) -> str:
        quantizer = self.relu_quantizer()
        self.set_constant(quantizer.input[3], 3.5)
        return str(quantizer.name)

    def negative_scale(self) -> str:
        quantizer = self.relu_quantizer()
        self.set_constant(quantizer.input[1], -1.0)
        return str(quantizer.name)

    def many_scales(self) -> str:
        quantizer = self.relu_quantizer()
        self.set_constant(quantizer.input[1], np.ones((1, 1, 8, 8)))
        return str(quantizer.name)

    def scales_per_input(self) -> str:
        convolution = self.first("Conv")
        quantizer = next(node for node in self.graph.node if convolution.input[1] in node.output)
        self.set_constant(quantizer.input[1], np.ones((1, 3, 1, 1)))
        return str(quantizer.name)

    def floor(self) -> str:
        return self.set_attribute(self.relu_quantizer(), "rounding_mode", "FLOOR")

    def float_layer(self) -> str:
        convolution = self.first("Conv")
        convolution.input[0] = self.graph.input[0].name
        return str(convolution.name)

    def float_weights(self) -> str:
        convolution = self.first("Conv")
        quantizer = next(node for node in self.graph.node if convolution.input[1] in node.output)
        convolution.input[1] = quantizer.input[0]
        return str(convolution.name)

    def two_scales(self) -> str:
        join = self.join()
        quantizer = next(node for node in self.graph.node if join.input[0] in node.output)
        self.set_constant(quantizer.input[1], 0.123)
        return str(join.name)

    def unquantized_join(self) -> str:
        join = self.join()
        quantizer = next(node for node in self.graph.node if join.input[0] in node.output)
        join.input[0] = quantizer.input[0]
        return str(join.name)

    def groups(self) -> str:
        return self.set_attribute(self.first("Conv", 1), "group", 2)

    def flat_map(self) -> str:
        convolution = self.first("Conv")
        for info in self.graph.value_info:
            if info.name == convolution.input[0]:
                del info.type.tensor_type.shape.dim[3]
        return str(convolution.name)

    def product(self) -> str:
        join = self.join()
        join.op_type = "Mul"
        return str(join.name)

    def bilinear(self) -> str:
        pool = self.first("GlobalAveragePool")
        pool.op_type = "Resize"
        return self.set_attribute(pool, "mode", "linear")


PLANTED: tuple[tuple[str, Callable[[Violations], str]], ...] = (
    ("no dangling input", Violations.dangling),
    ("no dangling input", Violations.dangling_output),
    ("known operators", Violations.foreign),
    ("static shapes", Violations.dynamic),
    ("one quantizer per producer", Violations.second_quantizer),
    ("one quantizer per producer", Violations.raw_reader),
    ("quantized ReLUs", Violations.bare_relu),
    ("signs by producer", Violations.signed_relu),
    ("signs by producer", Violations.narrow_relu),
    ("signs by producer", Violations.unsigned_input),
    ("zero points", Violations.shifted),
    ("zero points", Violations.flat_zero_point),
    ("widths", Violations.wide),
    ("widths", Violations.fractional),
    ("scales", Violations.negative_scale),
    ("scales", Violations.many_scales),
    ("scales", Violations.scales_per_input),
    ("rounding", Violations.floor),
    ("integer layers", Violations.float_layer),
    ("integer layers", Violations.float_weights),
    ("one scale where tensors join", Violations.two_scales),
    ("one scale where tensors join", Violations.unquantized_join),
    ("convolutions", Violations.groups),
    ("convolutions", Violations.flat_map),
    ("products with constants", Violations.product),
    ("nearest upsampling", Violations.bilinear),
)
