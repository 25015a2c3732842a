output "nodes" {
  description = "By node name: instance id, address (the private one where it has no public one), private address, zone."
  value = {
    for name, node in aws_instance.node : name => {
      id              = node.id
      address         = var.public_addresses ? try(aws_eip.node[name].public_ip, node.public_ip) : node.private_ip
      private_address = node.private_ip
      zone            = node.availability_zone
    }
  }
}
