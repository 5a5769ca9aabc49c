"""From Zarr to netCDF with xarray: daily maps become monthly means in one compressed file.

HDF5, which netCDF-4 files are made of, takes one writer at a time, and wants it to be one process. So tasks
that write run in this process, where the file is open and xarray's lock is held; graphmill says so in one
line of the log. All else runs on the workers.

    python examples/netcdf.py --store daily.zarr --output monthly.nc
    graphmill run examples/netcdf.py --scheduler default --store daily.zarr --output monthly.nc
"""

import argparse

import xarray as xr

import graphmill

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--store", required=True, help="Zarr group with variables over (time, y, x)")
parser.add_argument("--output", required=True, help="netCDF file to write")
parser.add_argument("--scheduler", choices=["graphmill", "default"], default="graphmill")
args = parser.parse_args()
chosen = {"scheduler": graphmill.get} if args.scheduler == "graphmill" else {}

monthly = xr.open_zarr(args.store).resample(time="MS").mean().astype("float32")
compressed = {name: {"zlib": True, "complevel": 4} for name in monthly.data_vars}
writing = monthly.to_netcdf(args.output, engine="h5netcdf", encoding=compressed, compute=False)
writing.compute(**chosen)

with xr.open_dataset(args.output, engine="h5netcdf", chunks={}) as written:
    means = written.mean().compute(**chosen)
    for name in written.data_vars:
        print(f"{name}: {written.sizes['time']} months, mean {means[name].item():.4f}")
