"""The sampler's steps: which schedulers are known, how chosen steps are run, and from where a run may go on."""
