# Endpoint and credentials come from the environment (AWS_PROFILE, AWS_ENDPOINT_URL, …), never from variables.
provider "aws" {
  region = var.region
}

# With no capacity the usual 25 retries take many minutes and no timeout of the resource ends them.
provider "aws" {
  alias       = "instances"
  region      = var.region
  max_retries = 2
}
