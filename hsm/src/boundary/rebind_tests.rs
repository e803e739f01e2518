use std::task::{Context, Poll, Waker};

use hsm_protocol::{Account, AccountNumber, CardBinding, Error, PinRecord, Reply, Request, SealedAccount};

use crate::{Config, Hsm, config::Wanted};

/// Executes a request on the software token, which answers at the first poll.
fn execute(hsm: &Hsm, request: Request) -> Result<Reply, Error> {
    let mut answer = std::pin::pin!(hsm.execute(request));
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => reply,
        Poll::Pending => panic!("the software token answers at once"),
    }
}

fn card(plastic_id: &str) -> CardBinding {
    CardBinding::new("bank", plastic_id).unwrap()
}

fn registered(hsm: &Hsm, number: &str, card: CardBinding) -> Account {
    let number = AccountNumber::parse(number).unwrap();
    match execute(hsm, Request::SealPan { number, card }) {
        Ok(Reply::SealedPan(sealed)) => Account::Registered(sealed),
        _ => panic!("the account number is not sealed"),
    }
}

fn copy(account: &Account) -> Account {
    match account {
        Account::PlasticId => Account::PlasticId,
        Account::Registered(sealed) => Account::Registered(SealedAccount::from_bytes(sealed.as_bytes()).unwrap()),
    }
}

fn generated(hsm: &Hsm, card: CardBinding, account: &Account) -> PinRecord {
    match execute(hsm, Request::Generate { digits: 4, card, account: copy(account) }) {
        Ok(Reply::Record { record, .. }) => record,
        _ => panic!("no PIN is generated"),
    }
}

fn rebound(
    hsm: &Hsm,
    record: &PinRecord,
    (card, account): (CardBinding, &Account),
    (to_card, to_account): (CardBinding, &Account),
) -> Result<PinRecord, Error> {
    let (from, to) = ((card, copy(account)), (to_card, copy(to_account)));
    match execute(hsm, Request::Rebind { record: record.clone(), from, to })? {
        Reply::Record { record, .. } => Ok(record),
        _ => panic!("the reply of another request"),
    }
}

#[test]
fn a_record_is_rebound_to_another_number_or_card_and_not_to_both() {
    let hsm = Hsm::open(Config::default()).unwrap();
    let (first, second) = (card("1000200030"), card("1000200031"));
    let (old, new) = (registered(&hsm, "5413330089020011", first), registered(&hsm, "4111111111111111", first));
    let record = generated(&hsm, first, &old);

    let for_new = rebound(&hsm, &record, (first, &old), (first, &new)).unwrap();
    assert_ne!(record.as_bytes(), for_new.as_bytes());
    assert!(rebound(&hsm, &for_new, (first, &new), (first, &old)).is_ok());
    let under_old = rebound(&hsm, &for_new, (first, &old), (first, &new));
    assert!(matches!(under_old, Err(Error::SealBroken { .. })), "the block is bound to the other number");

    let of_successor = registered(&hsm, "5413330089020011", second);
    let successor = rebound(&hsm, &record, (first, &old), (second, &of_successor)).unwrap();
    assert!(rebound(&hsm, &successor, (second, &of_successor), (first, &old)).is_ok());
    let other_number = registered(&hsm, "4111111111111111", second);
    let stranger = rebound(&hsm, &record, (first, &old), (second, &other_number));
    assert!(matches!(stranger, Err(Error::OtherAccount)));
    let of_other_tenant = CardBinding::new("other", "1000200030").unwrap();
    let same_number = registered(&hsm, "5413330089020011", of_other_tenant);
    let abroad = rebound(&hsm, &record, (first, &old), (of_other_tenant, &same_number));
    assert!(matches!(abroad, Err(Error::OtherAccount)), "a PIN stays with its tenant");
    let stolen = rebound(&hsm, &record, (second, &of_successor), (second, &other_number));
    assert!(matches!(stolen, Err(Error::SealBroken { .. })), "the record is of another card");
}

#[test]
fn a_one_way_record_stays_for_another_number_and_goes_to_no_other_card() {
    let wanted = Wanted { form: Some(crate::NewRecordFormat::OneWay), ..Wanted::default() };
    let hsm = Hsm::open(Config { wanted, ..Config::default() }).unwrap();
    let (first, second) = (card("1000200030"), card("1000200031"));
    let old = registered(&hsm, "5413330089020011", first);
    let record = generated(&hsm, first, &old);
    let new = registered(&hsm, "4111111111111111", first);
    let same = rebound(&hsm, &record, (first, &old), (first, &new)).unwrap();
    assert_eq!(same.as_bytes(), record.as_bytes());
    let of_successor = registered(&hsm, "5413330089020011", second);
    let refused = rebound(&hsm, &record, (first, &old), (second, &of_successor));
    assert!(matches!(refused, Err(Error::OneWay)));
}
