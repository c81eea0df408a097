"""From a flat plan to bytes: files, live models and devices. Needs torch and safetensors, never the compiler."""
