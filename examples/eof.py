"""The patterns in which temperature varies together: empirical orthogonal functions (EOF).

Reads a cube of daily maps (time, y, x) as a tall matrix with a row for each place and a column for each day,
with the mean of each place removed. The covariance of the days (a small matrix) is computed block by block,
its eigenvectors by NumPy; the matrix times the leading ones gives the patterns, which are stored as maps.
That is the singular value decomposition of the matrix, as far as the leading vectors go.

    python examples/eof.py --store .demo/cube-480x720x1440.zarr --output patterns.zarr
"""

import argparse

import dask.array as da
import numpy as np

import graphmill

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--store", required=True, help="Zarr array with axes (time, y, x)")
parser.add_argument("--output", help="Zarr array to make of the patterns; by default they are not computed")
parser.add_argument("--scheduler", choices=["graphmill", "threads"], default="graphmill")
parser.add_argument("--workers", type=int, help="how many tasks run at once; by default one per CPU")
args = parser.parse_args()
scheduler = graphmill.get if args.scheduler == "graphmill" else "threads"

temperature = da.from_zarr(args.store)
days, height, width = temperature.shape
places = temperature.reshape(days, height * width).T.rechunk({0: "auto", 1: -1})
matrix = places - places.mean(axis=1, keepdims=True)

covariance = (matrix.T @ matrix / len(matrix)).compute(scheduler=scheduler, num_workers=args.workers)
variances, vectors = np.linalg.eigh(covariance.astype("f8"))
leading = vectors[:, :-4:-1]  # the largest come last
leading *= np.sign(leading[abs(leading).argmax(axis=0), range(3)])  # the sign is arbitrary: choose one

if args.output:
    patterns = (matrix @ leading.astype("f4")).T.reshape(3, height, width)
    write = patterns.rechunk({0: 1, 1: -1, 2: -1}).to_zarr(args.output, overwrite=True, compute=False)
    write.compute(scheduler=scheduler, num_workers=args.workers)
shares = variances[:-4:-1] / variances.sum()
print("explained by the leading patterns:", *(f"{share:.1%}" for share in shares))
