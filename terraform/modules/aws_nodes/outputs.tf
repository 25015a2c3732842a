output "nodes" {
  description = "By node name: instance id, public and private address, zone."
  value = {
    for name, node in aws_instance.node : name => {
      id              = node.id
      address         = try(aws_eip.node[name].public_ip, node.public_ip)
      private_address = node.private_ip
      zone            = node.availability_zone
    }
  }
}
