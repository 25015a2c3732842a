output "vpc_id" {
  description = "Id of the VPC, made or given."
  value       = local.vpc_id
}

output "subnet_ids" {
  description = "Subnet id by zone. Known once the way to the internet is there too."
  value       = { for zone, subnet in aws_subnet.zone : zone => subnet.id }
  depends_on  = [aws_route_table_association.zone]
}
