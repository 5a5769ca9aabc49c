"""Climatology with xarray: what each month is usually like, and how far each day is from that.

Opens a Zarr group with a variable over (time, y, x), takes the mean of each month over all years and the
largest departure from it, and writes both to another Zarr group. Written as xarray's users write: nothing in
it but one argument is graphmill's, and under `graphmill run` not even that is needed.

    python examples/climatology.py --store daily.zarr --output climatology.zarr
    graphmill run examples/climatology.py --scheduler default --store daily.zarr --output climatology.zarr
"""

import argparse

import xarray as xr

import graphmill

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--store", required=True, help="Zarr group with a variable over (time, y, x)")
parser.add_argument("--variable", default="temperature")
parser.add_argument("--output", required=True, help="Zarr group to write")
parser.add_argument("--scheduler", choices=["graphmill", "default"], default="graphmill")
args = parser.parse_args()
chosen = {"scheduler": graphmill.get} if args.scheduler == "graphmill" else {}

daily = xr.open_zarr(args.store)[args.variable]
months = daily.groupby("time.month")
climatology = months.mean("time")
departure = abs(months - climatology).groupby("time.month").max("time")

result = xr.Dataset({"climatology": climatology, "largest_departure": departure})
result = result.chunk(month=1)  # one chunk per month, each written by one task
result.to_zarr(args.output, mode="w", consolidated=False, compute=False).compute(**chosen)

written = xr.open_zarr(args.output, consolidated=False).compute(**chosen)
for month in written.month.values:
    here = written.sel(month=month)
    print(f"month {month:2}: mean {here.climatology.mean().item():.3f}, "
          f"largest departure {here.largest_departure.max().item():.3f}")  # fmt: skip
