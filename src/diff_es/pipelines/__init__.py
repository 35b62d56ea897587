"""The boundary to diffusers: opening pipelines, sampling with them on fixed noises, hearing their timesteps."""
