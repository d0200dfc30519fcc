"""Changes to the ONNX graph that PyTorch's exporter makes."""

from typing import TYPE_CHECKING

from sb3_diffusion.export.policy import NOISE

if TYPE_CHECKING:
    import onnx


def search_only_where_needed(model: "onnx.ModelProto") -> None:
    """
    Put the search for a mode into a branch that is not taken where no state of the batch needs one: its operations cost time
    even on no rows. The exporter only knows operations, no branches.

    :param model: of a deterministic policy; changed in place
    """
    from onnx import TensorProto, helper

    graph = model.graph
    select = next(node for node in graph.node if node.op_type == "NonZero")
    scatter = next(node for node in graph.node if node.op_type == "ScatterND")
    # What depends on the rows selected, up to where their results are put back; all else it sees from outside.
    dependent, search = set(select.output), [select]
    for node in graph.node:
        if dependent & set(node.input):
            search.append(node)
            if node.name == scatter.name:
                break
            dependent |= set(node.output)
    kept = [node for node in graph.node if all(node.name != other.name for other in search)]
    position = next(index for index, node in enumerate(kept) if scatter.output[0] in node.input)
    result = scatter.output[0]

    def branch(name: str, nodes: list) -> "onnx.GraphProto":
        output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [output])

    scatter.output[0] = "searched"
    otherwise = [helper.make_node("Identity", [scatter.input[0]], ["not_searched"], name="not_searched")]
    needed = [
        helper.make_node("Cast", [select.input[0]], ["doubtful"], name="doubtful", to=TensorProto.INT32),
        helper.make_node("ReduceMax", ["doubtful"], ["n_doubtful"], name="n_doubtful", keepdims=0),
        helper.make_node("Cast", ["n_doubtful"], ["search_needed"], name="search_needed", to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["search_needed"],
            [result],
            name="search",
            then_branch=branch("search_the_doubtful", search),
            else_branch=branch("no_search", otherwise),
        ),
    ]
    del graph.node[:]
    graph.node.extend([*kept[:position], *needed, *kept[position:]])


def draw_noise_inside(model: "onnx.ModelProto") -> None:
    """
    Put a random number generator into the place of the input "noise".

    :param model: with that input, whose first dimension is the batch's; changed in place
    """
    from onnx import TensorProto, helper

    graph = model.graph
    noise = next(value for value in graph.input if value.name == NOISE)
    shape = [dimension.dim_value for dimension in noise.type.tensor_type.shape.dim][1:]
    graph.input.remove(noise)
    constants = {"batch_axis": [0], "noise_of_one": shape}
    nodes = [
        *(
            helper.make_node("Constant", [], [name], name=name, value=helper.make_tensor(name, TensorProto.INT64, [len(v)], v))
            for name, v in constants.items()
        ),
        helper.make_node("Shape", [graph.input[0].name], ["observation_shape"], name="observation_shape"),
        helper.make_node("Gather", ["observation_shape", "batch_axis"], ["batch_size"], name="batch_size"),
        helper.make_node("Concat", ["batch_size", "noise_of_one"], ["noise_shape"], name="noise_shape", axis=0),
        helper.make_node("ConstantOfShape", ["noise_shape"], ["noise_like"], name="noise_like"),
        helper.make_node("RandomNormalLike", ["noise_like"], [NOISE], name="draw_noise"),
    ]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
