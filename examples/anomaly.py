"""How much temperature varies from its climatology, at each place.

Reads a cube of daily maps (time, y, x), takes from each map the mean over all times, and stores the standard
deviation of what is left: one map. Each day is needed twice, once for the mean and once for the difference,
so whatever runs this must hold the whole cube, or read it again, or put it somewhere meanwhile.

    python examples/anomaly.py --store .demo/cube-480x720x1440.zarr --output deviation.zarr
"""

import argparse

import dask.array as da
import zarr

import graphmill

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--store", required=True, help="Zarr array with axes (time, y, x)")
parser.add_argument("--output", help="Zarr array to make of the result; by default it is only summed up")
parser.add_argument("--scheduler", choices=["graphmill", "threads"], default="graphmill")
parser.add_argument("--workers", type=int, help="how many tasks run at once; by default one per CPU")
args = parser.parse_args()
scheduler = graphmill.get if args.scheduler == "graphmill" else "threads"

temperature = da.from_zarr(args.store)
climatology = temperature.mean(axis=0)
anomaly = temperature - climatology
deviation = anomaly.std(axis=0).compute(scheduler=scheduler, num_workers=args.workers)

if args.output:
    zarr.create_array(args.output, data=deviation, overwrite=True)
print(f"standard deviation: {deviation.min():.2f} to {deviation.max():.2f} K, mean {deviation.mean():.3f} K")
