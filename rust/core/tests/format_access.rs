//! The asynchronous face.
#![cfg(feature = "async")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use imago_core::access::create::{CreateOptions, create};
use imago_core::file::File;
use imago_core::qcow2::Qcow2;
use imago_core::raw::Raw;
use imago_core::{ErrorKind, FormatAccess, StorageOpenOptions};

#[tokio::test]
async fn what_is_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    create(&path, &CreateOptions::qcow2(64 << 20)).unwrap();
    let image = FormatAccess::new(Qcow2::open_path(&path, true).await.unwrap());
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 253) as u8).collect();
    image.write(&bytes, 1_000_003).await.unwrap();
    let mut back = vec![0; bytes.len()];
    image.read(&mut back, 1_000_003).await.unwrap();
    assert!(back == bytes);
    let mut part = [0; 1000];
    image.read(&mut part, 1_000_003).await.unwrap();
    assert!(part == bytes[..1000]);
    image.write_zeroes(1_000_003, 500).await.unwrap();
    image.discard(0, 65536).await.unwrap();
    image.read(&mut part, 1_000_003).await.unwrap();
    assert!(part[..500] == [0; 500] && part[500..] == bytes[500..1000]);
    image.flush().await.unwrap();
    image.close().await.unwrap();
    assert_eq!(image.read(&mut part, 0).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(image.write(&part, 0).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn many_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    create(&path, &CreateOptions::raw(1 << 20)).unwrap();
    let file = File::open(StorageOpenOptions::new().filename(&path).write(true)).await.unwrap();
    let image = Arc::new(FormatAccess::new(Raw::open_image(Box::new(file), true).await.unwrap()));
    let tasks: Vec<_> = (0..64_u64)
        .map(|task| {
            let image = Arc::clone(&image);
            tokio::spawn(async move {
                let block = [task as u8 + 1; 4096];
                image.write(&block, task * 4096).await.unwrap();
                let mut back = [0; 4096];
                image.read(&mut back, task * 4096).await.unwrap();
                assert!(back == block);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_dropped_read_leaves_its_buffer_to_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    create(&path, &CreateOptions::qcow2(8 << 20)).unwrap();
    let image = FormatAccess::new(Qcow2::open_path(&path, true).await.unwrap());
    image.write(&vec![7; 4 << 20], 0).await.unwrap();
    for _ in 0..20 {
        let mut bytes = vec![1; 4 << 20];
        {
            let mut read = pin!(image.read(&mut bytes, 0));
            if read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                continue;
            }
        }
        assert!(bytes.iter().all(|byte| *byte == 1), "nobody writes to it behind its owner's back");
    }
    // Operations whose futures are gone are waited for.
    image.close().await.unwrap();
}
