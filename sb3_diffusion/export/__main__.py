"""
Write the policy of a saved model as a file that runs without this library (docs/deployment.md).

    python -m sb3_diffusion.export MODEL.zip OUT.onnx
    python -m sb3_diffusion.export MODEL.zip OUT.pt2 --sampled

MODEL.zip and the file of VecNormalize are loaded as Stable-Baselines3 loads them, which executes code that they contain: use
those you trust. The ONNX file that comes out executes none.
"""

import argparse
import pathlib

from sb3_diffusion.command_line import program
from sb3_diffusion.export import export_onnx, export_torch
from sb3_diffusion.saved import algorithm_of, algorithms

WRITERS = {".onnx": export_onnx, ".pt2": export_torch}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=program("export"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path, help="a file that model.save wrote")
    parser.add_argument("out", type=pathlib.Path, help="the file to write: .onnx, or .pt2 for torch.export")
    parser.add_argument("--algorithm", choices=[*algorithms()], help="of the model (default: as its policy class says)")
    parser.add_argument("--sampled", action="store_true", help="sampled actions (default: deterministic ones)")
    parser.add_argument(
        "--noise-input", action="store_true", help="sampled actions: noise is an input (default: drawn inside)"
    )
    parser.add_argument("--vec-normalize", type=pathlib.Path, help="the file of the training's VecNormalize (default: none)")
    parser.add_argument("--channels-first", action="store_true", help="images come channels first (default: last)")
    parser.add_argument("--unverified", action="store_true", help="no comparison with predict")
    args = parser.parse_args()
    if args.out.suffix not in WRITERS:
        parser.error(f"out={args.out} must end in one of {[*WRITERS]}")
    if args.noise_input and not args.sampled:
        parser.error("--noise-input goes with --sampled: a deterministic policy takes no noise")
    for path in (args.model, args.vec_normalize):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    algorithm = algorithms()[args.algorithm] if args.algorithm else algorithm_of(args.model)
    try:
        difference = WRITERS[args.out.suffix](
            algorithm.load(args.model, device="cpu"),
            args.out,
            deterministic=not args.sampled,
            vec_normalize=args.vec_normalize,
            noise_input=args.noise_input,
            channels_last=not args.channels_first,
            verification=not args.unverified,
        )
    except ImportError as error:
        raise SystemExit(str(error)) from error
    found = (
        "not verified" if difference is None else f"largest difference from predict {difference:.1g} of half an action's range"
    )
    print(f"{args.out}: {algorithm.__name__}, {found}")


if __name__ == "__main__":
    main()
