"""`spm serve`: draw pictures over HTTP, each tenant with its own membranes.

The API is the one that image clients already speak (OpenAI's `POST /v1/images/generations`). A key names a tenant, a
tenant a policy, a policy the membranes that must be in force. One thread owns the pipeline and draws the rows of many
requests, with different policies, in one denoiser call: by the paper's Eq. 9 every row has its own γ, so a row is not
touched by another row's membranes.

Rule of the house: a membrane that is required and cannot be applied means a refusal, never a bare picture.

    config   server.toml                    keys      API keys, stored hashed
    policies policies.toml                  library   the folder of membranes
    state    what is in force; hot reload   planning  which membranes act on a request
    jobs     rows waiting, fair queue       painter   the pipeline and its membranes
    worker   the threads that draw          audit     one record per picture
    painting what worker and painter share  fleet     replicas under Ray Serve, used like a painter
    replica  a painter on another machine
    schemas, routes, app, limits, monitoring, running: HTTP
"""
