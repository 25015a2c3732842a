output "launch_template_id" {
  description = "Id of the launch template."
  value       = aws_launch_template.node.id
}

output "launch_template_version" {
  description = "Newest version of the launch template, as a number."
  value       = aws_launch_template.node.latest_version
}

output "placement_group" {
  description = "Name of the placement group; null without one."
  value       = one(aws_placement_group.cluster[*].name)
}
