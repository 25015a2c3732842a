"""Known ways to fail of what a program asks of others: hub, cloud, tracker. The order is that of the search."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import row, says

SERVICE = (
    row(
        "wandb_denied",
        "Weights & Biases refuses the account of this key: {detail}",
        "look at entity and project (WANDB_ENTITY, WANDB_PROJECT in env:), and whose WANDB_API_KEY is in your"
        " environment; or wandb: offline in train.yaml",
        says(
            "CommError: It appears that you do not have permission to access {detail}",
            "CommError: {detail} not found during upsertBucket",
            "CommError: Error while calling W&B API: permission denied{detail}",
            "wandb: ERROR Error while calling W&B API: {detail} not found",
            "CommError: {detail}permission denied",
        ),
    ),
    row(
        "wandb_unreachable",
        "Weights & Biases could not be reached, or did not answer in time",
        "wandb: offline in train.yaml trains without it (wandb sync sends it later); else nexa ssh NODE -- getent hosts"
        " api.wandb.ai and the way out of the node; a slow node wants wandb.Settings(init_timeout=300)",
        says(
            "Run initialization has timed out after ",
            "Timed out waiting for wandb service to start",
            "wandb.sdk.lib.service.service_process.Service",
            "wandb.errors.CommError: ",
            "wandb.errors.errors.CommError: ",
            "wandb.errors.errors.UsageError: Error communicating with wandb process",
        ),
    ),
    row(
        "hub_denied",
        "the model hub refuses this to the account of the token (HF_TOKEN)",
        "give the token the right to write, or to the organisation, on the hub's page of tokens; then set HF_TOKEN in"
        " your environment (nexa passes it on)",
        says(
            "HfHubHTTPError: 403 Forbidden",
            "You don't have the rights to create a model",
            "403 Client Error: Forbidden for url: https://huggingface.co",
        ),
    ),
    row(
        "hub_download_broke",
        "a download from the model hub broke off: {detail}",
        'run it again; HF_HUB_DISABLE_XET: "1" and HF_HUB_ENABLE_HF_TRANSFER: "0" in env: take the plain way; let'
        " one rank a node download (nexa ssh NODE -- df -h for the room)",
        says(
            "An error occurred while downloading using `{detail}`",
            "Data processing error: {detail}",
            "Consistency check failed: {detail}",
        ),
    ),
    row(
        "hub_file_missing",
        "the model hub has the model, but not that file: {detail}",
        "look at the files on its page; an adapter wants its base model and PEFT, a GGUF file its gguf_file=, another"
        " branch its revision=",
        says(
            "does not appear to have a file named {detail}",
            "EntryNotFoundError: 404 Client Error{detail}",
            "Entry Not Found for url: {detail}",
            "RevisionNotFoundError: {detail}",
        ),
    ),
    row(
        "cloud_expired",
        "the credentials that the program asks a cloud with have expired",
        "give it new ones; better bring the data to the node before (git add, or below $NEXA_SHARED): nexa sends none"
        " of your credentials",
        says(
            "(ExpiredToken",
            "(RequestExpired)",
            "The provided token has expired",
            "ExpiredTokenException",
            "RefreshError: ",
        ),
    ),
    row(
        "cloud_missing",
        "the cloud's storage has no such bucket or object",
        "compare bucket, key and region with what is there, letter for letter",
        says(
            "(NoSuchKey)",
            "(NoSuchBucket)",
            "when calling the HeadObject operation: Not Found",
            "The specified blob does not exist",
        ),
    ),
    row(
        "cloud_busy",
        "a cloud's storage refuses so many requests: {detail}",
        "fewer and larger files (shards of 100 MB and more), fewer workers; download once a node, below $NEXA_SHARED;"
        " AWS_RETRY_MODE: adaptive in env: waits longer",
        says(
            "(SlowDown) when calling the {detail} operation",
            "Please reduce your request rate",
            "(Throttling",
            "(RequestLimitExceeded)",
        ),
    ),
    row(
        "clock_wrong",
        "this node's clock is wrong: a cloud refuses what it signs",
        "nexa diag shows by how much; nexa ssh NODE -- timedatectl tells whether it is set by a time server (sudo"
        " apt-get install chrony)",
        says(
            "(RequestTimeTooSkewed)", "Signature not yet current", "Signature expired: ", "certificate is not yet valid"
        ),
    ),
    row(
        "cloud_denied",
        "a cloud refuses the program that: {detail}",
        "its role or user needs the right for that operation on that bucket or key; checkpoints go to the cluster's"
        " bucket without any (bucket in cluster.yaml)",
        says(
            "(AccessDenied) when calling the {detail} operation",
            "(403) when calling the {detail} operation",
            "(AccessDeniedException) when calling the {detail} operation",
            "(UnauthorizedOperation) when calling the {detail} operation",
            "(AllAccessDisabled) when calling the {detail} operation",
            "(InvalidAccessKeyId) when calling the {detail} operation",
            "(SignatureDoesNotMatch) when calling the {detail} operation",
            "does not have storage.{detail} access",
            "^PermissionError: Access Denied",
            "^PermissionError: Forbidden",
        ),
    ),
    row(
        "proxy_refused",
        "the proxy for the way out refused, or could not be reached",
        "mend HTTPS_PROXY and NO_PROXY in env:, or the proxy's list of allowed hosts; or bring the data to the node"
        " before (below $NEXA_SHARED)",
        says("Cannot connect to proxy", "Tunnel connection failed: ", "407 Proxy Authentication Required"),
    ),
    row(
        "tls_broken",
        "an encrypted connection to a server outside broke off",
        "something on the way is no TLS: a proxy that wants http:// in HTTPS_PROXY (env:), a firewall, or a server"
        " that is too busy; nexa diag shows whether the node's clock is right",
        says(
            "EOF occurred in violation of protocol",
            "UNEXPECTED_EOF_WHILE_READING",
            "WRONG_VERSION_NUMBER",
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
            "TLSV1_ALERT_",
            "gnutls_handshake() failed",
        ),
    ),
    row(
        "git_access",
        "git or ssh got no access from this node: {detail}",
        "nexa sends no key of yours to a node: have the code in your project (a submodule, a wheel in it), or use an"
        " address that needs no login",
        says(
            "^fatal: could not read Username for {detail}",
            "^fatal: Could not read from remote repository",
            "^fatal: Authentication failed for {detail}",
            "^fatal: repository {detail} not found",
            "^Host key verification failed",
            "Permission denied (publickey",
        ),
    ),
    row(
        "command_missing",
        "a program is not on this node: {detail}",
        "install it on every node: nexa ssh NODE -- sudo apt-get install PACKAGE; what comes with a Python package is"
        " there once environment: names that package",
        says(
            ": line …: {detail}: command not found",
            "sh: …: {detail}: not found",
            "No such file or directory: '{detail}'",
        ),
        near=says("command not found", ": not found", "/subprocess.py"),
    ),
    row(
        "pip_no_version",
        "a package is not there in that version for this Python and system: {detail}",
        "name a version that exists for it, in environment: of train.yaml; a node without a way out gets what another"
        " node has built",
        says(
            "No matching distribution found for {detail}",
            "Could not find a version that satisfies the requirement {detail}",
        ),
    ),
    row(
        "pip_managed",
        "pip was to change the Python of the system",
        "name the package in train.yaml instead, environment: {packages: [NAME]}; or a venv below $NEXA_SCRATCH",
        says("error: externally-managed-environment"),
    ),
    row(
        "sudo_password",
        "the node's user may not use sudo without a password",
        "do in nexa provision what needs it (on hosts of your own system_changes: true), or give that user the right in"
        " /etc/sudoers.d",
        says("^sudo: a password is required", "^sudo: a terminal is required", "is not in the sudoers file"),
    ),
    row(
        "apt_locked",
        "another program installs packages on this node at the same time: {detail}",
        "wait for it (a new machine updates itself): apt-get -o DPkg::Lock::Timeout=300; or install what is needed in"
        " nexa provision",
        says("^E: Could not get lock {detail}", "Unable to acquire the dpkg frontend lock"),
    ),
    row(
        "service_unreachable",
        "a service outside could not be reached, or broke off: {detail}",
        "nexa ssh NODE -- getent hosts NAME, then the way there (a firewall, a security group, an address that only"
        " your own network has); or bring the data to the node before (below $NEXA_SHARED)",
        says(
            "host='{detail}', port=…Max retries exceeded with url",
            "HTTPSConnectionPool(host='{detail}', port=…Read timed out",
            "HTTPConnectionPool(host='{detail}', port=…Read timed out",
            "Could not connect to the endpoint URL: {detail}",
            "Connect timeout on endpoint URL: {detail}",
            "ConnectionError: ('Connection aborted.', {detail}",
            "ChunkedEncodingError: {detail}",
            "IncompleteRead({detail}",
            "httpx.ConnectTimeout: {detail}",
            "httpx.ReadTimeout: {detail}",
            "httpx.ConnectError: {detail}",
            "aiohttp.client_exceptions.ClientConnectorError: {detail}",
        ),
    ),
)
