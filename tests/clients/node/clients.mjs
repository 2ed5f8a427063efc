// OpenAI's and Ollama's clients for JavaScript against the program:
//
//     npm ci --ignore-scripts && npx node clients.mjs http://127.0.0.1:11434 smollm2:135m

import assert from "node:assert/strict";

import { Ollama } from "ollama";
import OpenAI from "openai";

import { run } from "./cases.mjs";

const [url, model] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const ollama = new Ollama({ host: url });

const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, messages, temperature: 0, max_tokens: 40 };
const person = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 150 } },
  required: ["name", "age"],
  additionalProperties: false,
};

const cases = {
  async "openai: a stream is the whole answer"() {
    const whole = await openai.chat.completions.create(greedy);
    assert.match(whole.choices[0].message.content, /Paris/);
    const stream = await openai.chat.completions.create({
      ...greedy, stream: true, stream_options: { include_usage: true },
    });
    let text = "", reason, usage;
    for await (const chunk of stream) {
      usage = chunk.usage ?? usage;
      text += chunk.choices[0]?.delta.content ?? "";
      reason = chunk.choices[0]?.finish_reason ?? reason;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(reason, whole.choices[0].finish_reason);
    assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
  },

  async "openai: an answer follows a schema"() {
    const answer = await openai.chat.completions.create({
      model, seed: 3, max_tokens: 120,
      messages: [{ role: "user", content: "Invent a person, as JSON." }],
      response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } },
    });
    const found = JSON.parse(answer.choices[0].message.content);
    assert.deepEqual(Object.keys(found), ["name", "age"]);
    assert.ok(Number.isInteger(found.age));
  },

  async "openai: a stream that is left is no longer computed"() {
    const stream = await openai.chat.completions.create({ ...greedy, max_tokens: 2000, ignore_eos: true, stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) break;
    }
    stream.controller.abort();
    for (let tries = 0; ; tries++) {
      const health = await (await fetch(`${url}/health`)).json();
      if (health.queue.running === 0) break;
      assert.ok(tries < 50, "the request still runs after 5 s");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  },

  async "openai: the beta helper reads the stream"() {
    const helper = openai.chat.completions.stream(greedy);
    assert.match(await helper.finalContent(), /Paris/);
  },

  async "openai: responses stream their events"() {
    const stream = await openai.responses.create({ model, input: "Say hi.", max_output_tokens: 20, stream: true });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    assert.equal(kinds[0], "response.created");
    assert.ok(kinds.includes("response.output_text.delta"));
    assert.match(kinds.at(-1), /^response\.(completed|incomplete)$/);
  },

  async "openai: vectors of near texts are near"() {
    const input = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."];
    // The client asks for base64 by itself.
    const { data } = await openai.embeddings.create({ model, input, pooling: "mean" });
    const [cat, kitten, rates] = data.map((one) => one.embedding);
    const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
    assert.ok(Math.abs(dot(cat, cat) - 1) < 1e-3);
    assert.ok(dot(cat, kitten) > dot(cat, rates), `${dot(cat, kitten)} ${dot(cat, rates)}`);
  },

  async "openai: models are listed, and an unknown one is a 404"() {
    const names = [];
    for await (const one of openai.models.list()) names.push(one.id);
    assert.ok(names.includes(model));
    await assert.rejects(openai.chat.completions.create({ ...greedy, model: "nobody" }), { status: 404 });
  },

  async "ollama: chat, whole and in lines"() {
    const options = { temperature: 0, num_predict: 40 };
    const whole = await ollama.chat({ model, messages, options });
    assert.match(whole.message.content, /Paris/);
    let text = "", last;
    for await (const part of await ollama.chat({ model, messages, options, stream: true })) {
      text += part.message.content;
      last = part;
    }
    assert.equal(text, whole.message.content);
    assert.ok(last.done && last.eval_count > 0);
  },

  async "ollama: an answer follows a schema"() {
    const answer = await ollama.chat({ model, messages, format: person, options: { seed: 1, num_predict: 120 } });
    assert.deepEqual(Object.keys(JSON.parse(answer.message.content)), ["name", "age"]);
  },

  async "ollama: generate, embed, list, show, ps, version"() {
    const { response } = await ollama.generate({ model, prompt: "Hi", options: { num_predict: 5 } });
    assert.ok(response.length > 0);
    const { embeddings } = await ollama.embed({ model, input: ["a", "b"] });
    assert.equal(embeddings.length, 2);
    assert.ok((await ollama.list()).models.some((one) => one.name === model));
    assert.ok((await ollama.show({ model })).capabilities.includes("completion"));
    assert.ok((await ollama.ps()).models.some((one) => one.name === model));
  },

  async "ollama: tools for a model that knows none are refused by name"() {
    const tools = [{ type: "function", function: { name: "f", parameters: { type: "object", properties: {} } } }];
    await assert.rejects(ollama.chat({ model, messages, tools }), /tools/);
  },
};

await run(cases);
