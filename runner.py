#!/usr/bin/env python
"""Run experiments: `python runner.py experiments/05_kd_r18.yaml`. All of it is in vitlab/cli.py."""

from vitlab.cli import run_main

if __name__ == "__main__":
    run_main()
