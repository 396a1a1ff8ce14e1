"""`sd-cli` in the place of `sd-server`: for builds of stable-diffusion.cpp that have no server.

`python -m genai_notebook.core.engines.sd_cli --cli PATH` takes sd-server's flags and speaks its job API; every job is
one run of sd-cli, which loads the model anew.
"""
