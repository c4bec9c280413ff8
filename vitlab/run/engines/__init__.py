"""What executes a plan: processes of this machine (local.py), Ray (ray.py) or Slurm (slurm.py), behind the interface of engine.py."""
