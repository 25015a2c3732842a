terraform {
  required_version = ">= 1.10" # locks in S3 without a table

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}
