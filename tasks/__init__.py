"""The stages of the pipeline as Prefect tasks: load, call one pure function, save."""
