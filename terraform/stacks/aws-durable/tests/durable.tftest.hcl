mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::unit", id = "unit" }
  }
}

variables {
  region = "us-east-1"
  owner  = "me@example.org"
  bucket = "lab-durable"
}

run "one_bucket" {
  command = plan

  assert {
    condition     = join(",", keys(module.bucket)) == "durable" && output.state_bucket == null
    error_message = "the state's bucket is made only when it is named"
  }
}

run "with_state" {
  command = plan
  variables { state_bucket = "lab-state" }

  assert {
    condition     = join(",", keys(module.bucket)) == "durable,state"
    error_message = "states have a bucket of their own"
  }
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    region       = "here"
    owner        = ""
    state_bucket = "lab-durable"
    tags         = { "aws:x" = "y" }
  }

  expect_failures = [var.region, var.owner, var.state_bucket, var.tags]
}

run "refused_2" {
  command = plan

  variables {
    bucket = "no"
  }

  expect_failures = [var.bucket]
}
