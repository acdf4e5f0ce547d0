use super::*;

#[test]
fn it_comes_up_and_moves_blocks() {
    let fake = Fake::new(&[(1, FakeNamespace::new(9, 4096)), (3, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 2);
    assert_eq!(world.controller.namespaces().len(), 2);
    let identity = world.controller.identity().unwrap();
    assert_eq!((identity.serial.as_str(), identity.model.as_str()), ("FAKE0001", "Fake NVMe"));
    assert_eq!(world.controller.statistics().queue_pairs, 3);
    let geometry = world.namespace(3).geometry();
    assert_eq!((geometry.block_size, geometry.blocks, geometry.write_cache), (4096, 512, true));
    let mut host = world.host(1, 3);
    let data = host.buffer(8192, 0x5A);
    assert_eq!(one(&mut world, &mut host, WRITE, 7, 2, Some(data)).result, DONE);
    assert_eq!(one(&mut world, &mut host, BlockOp::Flush, 0, 0, None).result, DONE);
    let data = host.buffer(4096 * 4, 0xFF);
    let read = one(&mut world, &mut host, BlockOp::Read, 6, 4, Some(data));
    let bytes: Vec<u8> = read.data.unwrap().iter().step_by(4096).copied().collect();
    assert_eq!((read.result, bytes), (DONE, vec![0, 0x5A, 0x5A, 0]));
    let opcodes: Vec<u8> = fake.lock().log.iter().map(|command| command.opcode()).collect();
    assert_eq!(opcodes, [1, 0, 2]);
}
