"""A stack of images without its spikes.

Reads a stack (time, y, x), replaces each value by the median of three neighbours, along time, y and x in
turn, and writes the result as another Zarr array with the same chunks. Chunks need the margins of their
neighbours, which `map_overlap` gives them.

    python examples/despike.py --store .demo/cube-480x720x1440.zarr --output despiked.zarr
"""

import argparse

import dask.array as da
import numpy as np

import graphmill

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--store", required=True, help="Zarr array with axes (time, y, x)")
parser.add_argument("--output", required=True, help="Zarr array to make")
parser.add_argument("--scheduler", choices=["graphmill", "threads"], default="graphmill")
parser.add_argument("--workers", type=int, help="how many tasks run at once; by default one per CPU")
args = parser.parse_args()
scheduler = graphmill.get if args.scheduler == "graphmill" else "threads"


def median_of_three(block, axis):
    """Replace inner values by the median of themselves and both neighbours along an axis."""
    values = np.moveaxis(block, axis, 0)
    before, here, after = values[:-2], values[1:-1], values[2:]
    median = np.maximum(np.minimum(before, here), np.minimum(np.maximum(before, here), after))
    return np.moveaxis(np.concatenate([values[:1], median, values[-1:]]), 0, axis)


def despike(block):
    """Do so along all axes in turn."""
    for axis in range(block.ndim):
        block = median_of_three(block, axis)
    return block


images = da.from_zarr(args.store)
smooth = images.map_overlap(despike, depth=1, boundary="nearest")
write = smooth.to_zarr(args.output, overwrite=True, compute=False)
write.compute(scheduler=scheduler, num_workers=args.workers)
print(f"wrote {smooth.nbytes / 1e9:.2f} GB to {args.output}")
