output "bucket" {
  description = "Bucket for checkpoints and manifests."
  value       = module.bucket["durable"].bucket
}

output "state_bucket" {
  description = "Bucket for Terraform states; null without one."
  value       = try(module.bucket["state"].bucket, null)
}
